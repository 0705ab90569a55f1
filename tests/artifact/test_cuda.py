"""Protects CUDA source artifacts: they compile with nvcc, and compute the right values on a CPU."""

import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from artifact_programs import assert_as_exact_as_eager, export, make_rnn, needs
from covered import in_turn
from cuda_cells import EVERYTHING, POINTS, SINGLE
from cuda_cells import activation as expected_activation
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import rnnjit
from rnnjit.ir import LSTM
from rnnjit_cuda import BACKEND
from rnnjit_cuda.c_pointwise import activation

EMULATION = Path(__file__).parent / "cuda_emulation"
STACKS = {
    "bidirectional": {"num_layers": 2, "bidirectional": True},
    "relu-no-bias": {"num_layers": 3, "nonlinearity": "relu", "bias": False},
}
#: Reads numbers, and writes what each function makes of each.
MAIN = """
int main()
{
    for (real z; fread(&z, sizeof z, 1, stdin);)
        for (auto function : functions) {
            real h = function(z);
            fwrite(&h, sizeof h, 1, stdout);
        }
}
"""
LAUNCH = re.compile(r"(\w+)<<<((?:[^<>]|\((?:[^()]*)\))*), stream>>>\(([^;]*)\);")


def emulated(source):
    """The source as C++ that the emulation runs."""
    source, launches = LAUNCH.subn(r"emulate(\2, [=] { \1(\3); });", source)
    assert launches == 4
    shared = "extern __shared__ real states[];"
    assert shared in source
    return source.replace(shared, "real *states = (real *)dynamic_shared.data();")


@pytest.fixture(
    scope="module",
    params=["bidirectional", pytest.param("relu-no-bias", marks=pytest.mark.full)],
)
def program(request, tmp_path_factory):
    """A stack, its artifact, and the program that computes it on the CPU."""
    (compiler,) = needs("g++")
    place = tmp_path_factory.mktemp(request.param)
    rnn = make_rnn(**STACKS[request.param])
    artifact = export(rnn, place, target="cuda")
    (place / "emulated.cpp").write_text(emulated((artifact / "rnn.cu").read_text()))
    flags = ("-std=c++20", "-O1", "-pthread", f"-I{EMULATION}", f"-I{artifact}", f"-I{place}")
    run = place / "run"
    command = [compiler, *flags, str(EMULATION / "main.cpp"), "-o", str(run)]
    subprocess.run(command, check=True, timeout=120)
    return rnn, artifact, run


def compute(program, tmp_path, x, hx=None):
    rnn, artifact, run = program
    packed = isinstance(x, PackedSequence)
    rows = x.data if packed else x.flatten(0, 1)
    T, B = (len(x.batch_sizes), int(x.batch_sizes[0])) if packed else x.shape[:2]
    given = {"sizes": x.batch_sizes if packed else None, "x": rows, "hx": hx}
    for name, tensor in given.items():
        (tmp_path / name).write_bytes(b"" if tensor is None else tensor.numpy().tobytes())
    paths = [tmp_path / name for name in given] + [artifact / "weights.bin"]
    command = [str(run), *map(str, (T, B, len(rows), *paths))]
    done = subprocess.run(command, capture_output=True, check=True, timeout=120)
    width = rnn.hidden_size * (2 if rnn.bidirectional else 1)
    found = torch.frombuffer(bytearray(done.stdout), dtype=torch.float32)
    y = found[: len(rows) * width].view(*(rows if packed else x).shape[:-1], width)
    return y, found[len(rows) * width :].view(-1, B, rnn.hidden_size)


def compile_with_nvcc(place):
    (nvcc,) = needs("nvcc")
    target = ("-arch=sm_80", "-Werror", "all-warnings")
    command = [nvcc, *target, "-c", str(place / "rnn.cu"), "-o", str(place / "rnn.o")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("given", [False, True], ids=["zeros", "hx"])
def test_dense(program, given, tmp_path):
    torch.manual_seed(0)
    x = torch.randn(4, 5, 19)
    states = program[0].num_layers * (2 if program[0].bidirectional else 1)
    hx = torch.randn(states, 5, 45) if given else None
    assert_as_exact_as_eager(program[0], compute(program, tmp_path, x, hx), x, hx)


def test_packed(program, tmp_path):
    torch.manual_seed(0)
    lengths = torch.tensor([6, 4, 4, 1])
    x = pack_padded_sequence(torch.randn(6, 4, 19), lengths)
    assert_as_exact_as_eager(program[0], compute(program, tmp_path, x), x)


def test_nan_stays_where_eager_has_it(program, tmp_path):
    x = torch.randn(4, 3, 19)
    x[1, 2, 4] = float("nan")
    assert_as_exact_as_eager(program[0], compute(program, tmp_path, x), x)


@pytest.mark.parametrize(
    ("stack", "dtype"), in_turn(STACKS, [torch.float32, torch.float64]), ids=str
)
def test_nvcc_compiles_it(stack, dtype, tmp_path):
    compile_with_nvcc(export(make_rnn(dtype, **STACKS[stack]), tmp_path, target="cuda"))


@pytest.mark.parametrize(
    "dtype", [torch.float32, pytest.param(torch.float64, marks=pytest.mark.full)], ids=str
)
def test_nvcc_compiles_each_operation(dtype, tmp_path):
    program = BACKEND.build(rnnjit.RNNSpec(2, 3, cell=EVERYTHING), dtype, "cuda", "rnn")
    for name, content in program.files.items():
        (tmp_path / name).write_bytes(content)
    compile_with_nvcc(tmp_path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_each_operation(dtype, tmp_path):
    (compiler,) = needs("g++")
    bodies = [" ".join(activation(cell, dtype)) for cell in SINGLE.values()]
    functions = [f"[](real z) -> real {{ {body} }}," for body in bodies]
    real = "float" if dtype == torch.float32 else "double"
    lines = ["#include <cmath>", "#include <cstdio>", f"typedef {real} real;"]
    lines += ["real (*const functions[])(real) = {", *functions, "};", MAIN]
    (tmp_path / "operations.cpp").write_text("\n".join(lines))
    flags = ("-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", str(tmp_path / "operations.cpp"))
    run = tmp_path / "run"
    subprocess.run([compiler, *flags, "-o", str(run)], check=True, timeout=120)
    z = POINTS.astype(np.float32 if dtype == torch.float32 else np.float64)
    done = subprocess.run([str(run)], input=z.tobytes(), capture_output=True, check=True)
    found = np.frombuffer(done.stdout, z.dtype).reshape(len(z), -1)
    close = {"rtol": 8 * np.finfo(z.dtype).eps, "atol": np.finfo(z.dtype).tiny}
    for name, column in zip(SINGLE, found.T, strict=True):
        with np.errstate(over="ignore"):
            expected = expected_activation(SINGLE[name], z.astype(float)).astype(z.dtype)
        np.testing.assert_allclose(column, expected, **close, err_msg=name)


def test_cells_that_the_source_does_not_compute_are_refused():
    with pytest.raises(ValueError, match="'lstm' is not an Elman cell"):
        BACKEND.build(rnnjit.RNNSpec(2, 3, cell=LSTM), torch.float32, "cuda", "rnn")
    with pytest.raises(ValueError, match="proj_size is 2"):
        BACKEND.build(rnnjit.RNNSpec(2, 3, proj_size=2), torch.float32, "cuda", "rnn")


def test_source_is_not_loaded(tmp_path):
    place = export(make_rnn(), tmp_path, target="cuda")
    with pytest.raises(rnnjit.ArtifactError, match=r"CUDA source, rnn\.cu: compile it with nvcc"):
        rnnjit.load_artifact(place)

"""CUDA source as an artifact: it compiles where nvcc is, and computes the right thing on a CPU."""

import re
import subprocess
from pathlib import Path

import pytest
import torch
from artifact_programs import assert_as_exact_as_eager, export, make_rnn, needs
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import rnnjit

EMULATION = Path(__file__).parent / "cuda_emulation"
STACKS = {
    "bidirectional": {"num_layers": 2, "bidirectional": True},
    "relu-no-bias": {"num_layers": 3, "nonlinearity": "relu", "bias": False},
}
LAUNCH = re.compile(r"(\w+)<<<((?:[^<>]|\((?:[^()]*)\))*), stream>>>\(([^;]*)\);")


def emulated(source):
    """The source as C++ that the emulation runs."""
    source, launches = LAUNCH.subn(r"emulate(\2, [=] { \1(\3); });", source)
    assert launches == 4
    shared = "extern __shared__ real states[];"
    assert shared in source
    return source.replace(shared, "real *states = (real *)dynamic_shared.data();")


@pytest.fixture(scope="module", params=STACKS)
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("stack", STACKS)
def test_nvcc_compiles_it(stack, dtype, tmp_path):
    (nvcc,) = needs("nvcc")
    artifact = export(make_rnn(dtype, **STACKS[stack]), tmp_path, target="cuda")
    target = ("-arch=sm_80", "-Werror", "all-warnings")
    command = [nvcc, *target, "-c", str(artifact / "rnn.cu"), "-o", str(tmp_path / "rnn.o")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr


def test_source_is_not_loaded(tmp_path):
    place = export(make_rnn(), tmp_path, target="cuda")
    with pytest.raises(rnnjit.ArtifactError, match=r"CUDA source, rnn\.cu: compile it with nvcc"):
        rnnjit.load_artifact(place)

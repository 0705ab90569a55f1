"""Protects artifacts without Python: C programs, run here and on processors that qemu emulates."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from artifact_programs import (
    assert_as_exact_as_eager,
    build,
    export,
    make_rnn,
    needs,
    out_features,
    run,
    run_steps,
    split,
    state_shapes,
)
from covered import in_full
from folders import ROOT
from torch import nn

import rnnjit
from rnnjit_numba.program import STEPPING

BOTH = {"num_layers": 2, "bidirectional": True}
STACKS = {
    "rnn": {},
    "rnn-bidirectional": BOTH,
    "relu-no-bias": {"num_layers": 3, "nonlinearity": "relu", "bias": False},
    "lstm": {"kind": nn.LSTM, **BOTH},
    "lstm-projected": {"kind": nn.LSTM, **BOTH, "proj_size": 10},
    "gru": {"kind": nn.GRU, **BOTH},
    "gru-no-bias": {"kind": nn.GRU, "num_layers": 3, "bias": False},
}
#: Stacks of one direction, which are run step by step.
STREAMS = {
    "rnn": {"num_layers": 2},
    "lstm": {"kind": nn.LSTM},
    "lstm-projected": {"kind": nn.LSTM, "num_layers": 2, "proj_size": 10},
    "gru": {"kind": nn.GRU, "num_layers": 2, "bias": False},
}
DTYPES = [torch.float32, torch.float64]
#: Steps and sequences: few rows, whose weights are read as they lie; hoisted; and full tiles.
CALLS = ((2, 2), (9, 3), (6, 21))
#: What machines play other processors here, and what compiles for them.
PLAYED = {
    "aarch64": ("aarch64-linux-gnu-gcc", "qemu-aarch64"),
    "riscv64": ("riscv64-linux-gnu-gcc", "qemu-riscv64"),
}
OBJECTS = {
    "x86-64-v3": b"\x7fELF\x02\x01",
    "x86-64-v4": b"\x7fELF\x02\x01",
    "aarch64": b"\x7fELF\x02\x01",
    "apple-m1": b"\xcf\xfa\xed\xfe\x0c\x00\x00\x01",  # 64-bit Mach-O, ARM64
    "riscv64": b"\x7fELF\x02\x01",
    "wasm32": b"\0asm\x01\0\0\0",
}
#: e_machine of the ELF header, from the System V ABI's registry.
ELF_MACHINES = {"x86-64-v3": 62, "x86-64-v4": 62, "aarch64": 183, "riscv64": 243}


#: Programs in JavaScript that call a network in WebAssembly.
WASM = Path(__file__).parent / "wasm"


def assert_steps_agree(command, artifact, rnn, dtype):
    for T, B in CALLS:
        x = torch.randn(T, B, 19, dtype=dtype)
        assert_as_exact_as_eager(rnn, run_steps(command, artifact, rnn, x), x)


def assert_program_agrees(command, artifact, rnn, dtype):
    for T, B in CALLS:
        x = torch.randn(T, B, 19, dtype=dtype)
        assert_as_exact_as_eager(rnn, run(command, artifact, rnn, x), x)


@pytest.mark.parametrize(
    ("stack", "dtype"),
    [
        ("lstm-projected", torch.float64),
        *in_full(["rnn", "relu-no-bias", "lstm"], [torch.float64]),
        *in_full(["rnn-bidirectional", "lstm-projected", "gru", "gru-no-bias"], [torch.float32]),
    ],
)
def test_a_c_program_runs_the_network(stack, dtype, tmp_path):
    (compiler,) = needs("cc")
    rnn = make_rnn(dtype, **STACKS[stack])
    artifact = export(rnn, tmp_path)
    program = build(artifact, compiler)
    assert_program_agrees([program], artifact, rnn, dtype)


@pytest.mark.full
def test_the_commands_of_the_page_run_as_they_stand(tmp_path):
    needs("cc", "bash")
    page = (ROOT / "docs" / "examples.md").read_text(encoding="utf-8")
    section = page.partition("## A C program")[2].partition("\n## ")[0]
    commands = "\n".join(re.findall(r"```sh\n(.*?)```", section, re.DOTALL))
    assert commands.count("./") == 2
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    subprocess.run(
        ["bash", "-e", "-c", commands],
        cwd=tmp_path,
        env={**os.environ, "PATH": path},
        check=True,
        timeout=300,
    )
    rnn = torch.load(tmp_path / "model.pt", weights_only=False)
    content = bytearray((tmp_path / "input").read_bytes())
    x = torch.frombuffer(content, dtype=torch.float32).view(5, 2, 3)
    assert_as_exact_as_eager(rnn, split((tmp_path / "output").read_bytes(), rnn, x), x)


def test_the_c_program_says_what_it_is_called_with(tmp_path):
    (compiler,) = needs("cc")
    artifact = export(make_rnn(torch.float64), tmp_path)
    program = build(artifact, compiler)
    done = subprocess.run([program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(f"usage: {program} WEIGHTS T B < input > output\n")
    assert "x [T, B, 19], 8 bytes a number" in done.stderr
    command = [program, "nowhere.bin", "1", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (1, "nowhere.bin: No such file or directory\n")


@pytest.mark.parametrize(
    ("stack", "dtype"),
    [
        ("lstm-projected", torch.float32),
        *in_full(["lstm-projected", "gru"], [torch.float64]),
        *in_full(["rnn", "lstm"], [torch.float32]),
    ],
)
def test_a_c_program_runs_it_step_by_step(stack, dtype, tmp_path):
    (compiler,) = needs("cc")
    rnn = make_rnn(dtype, **STREAMS[stack])
    artifact = export(rnn, tmp_path)
    program = build(artifact, compiler, source="stream")
    assert_steps_agree([program], artifact, rnn, dtype)


@pytest.mark.parametrize(
    ("target", "stack", "dtype"),
    [
        ("aarch64", "gru", torch.float32),
        *in_full(["aarch64"], ["rnn-bidirectional", "lstm-projected"], [torch.float64]),
        *in_full(["riscv64"], ["rnn-bidirectional", "gru"], [torch.float64]),
        *in_full(["riscv64"], ["lstm-projected"], DTYPES),
    ],
)
def test_another_processor_computes_the_same(target, stack, dtype, tmp_path):
    compiler, machine = needs(*PLAYED[target])
    rnn = make_rnn(dtype, **STACKS[stack])
    artifact = export(rnn, tmp_path, target=target)
    program = build(artifact, compiler, "-static")
    assert_program_agrees([machine, program], artifact, rnn, dtype)


@pytest.mark.parametrize(
    ("target", "stack", "dtype"),
    [
        ("aarch64", "lstm-projected", torch.float32),
        *in_full(["aarch64", "riscv64"], ["gru"], [torch.float64]),
        *in_full(["riscv64"], ["rnn", "lstm-projected"], [torch.float32]),
    ],
)
def test_another_processor_runs_it_step_by_step(target, stack, dtype, tmp_path):
    compiler, machine = needs(*PLAYED[target])
    rnn = make_rnn(dtype, **STREAMS[stack])
    artifact = export(rnn, tmp_path, target=target)
    program = build(artifact, compiler, "-static", source="stream")
    assert_steps_agree([machine, program], artifact, rnn, dtype)


@pytest.fixture
def wasm(tmp_path):
    """`run(rnn, x, stepwise)`: the bytes of y and the states that WebAssembly computes in Node."""
    linker, node = needs("wasm-ld", "node")

    def run_in_node(rnn, x, stepwise):
        artifact = export(rnn, tmp_path, target="wasm32")
        names = ["forward", "scratch_bytes", *(() if rnn.bidirectional else STEPPING)]
        exported = [*(f"--export=rnn_{name}" for name in names), "--export=__heap_base"]
        module = tmp_path / "rnn.wasm"
        command = [linker, "--no-entry", *exported, str(artifact / "rnn.o"), "-o", str(module)]
        subprocess.run(command, check=True, timeout=60)
        (tmp_path / "x").write_bytes(x.numpy().tobytes())
        T, B, _ = x.shape
        numbers = (T, B, out_features(rnn), x.element_size())
        states = [torch.Size(shape).numel() for shape in state_shapes(rnn, B)]
        arguments = [module, artifact / "weights.bin", tmp_path / "x", *numbers, *states]
        script = WASM / ("steps.mjs" if stepwise else "whole.mjs")
        command = [node, str(script), *map(str, arguments)]
        return subprocess.run(command, capture_output=True, check=True, timeout=60).stdout

    return run_in_node


@pytest.mark.parametrize(
    ("stack", "dtype"),
    [
        ("lstm-projected", torch.float32),
        *in_full(["lstm-projected", "gru"], [torch.float64]),
        *in_full(["rnn-bidirectional"], [torch.float32]),
    ],
)
def test_webassembly_computes_the_same(stack, dtype, wasm):
    rnn, x = make_rnn(dtype, **STACKS[stack]), torch.randn(6, 9, 19, dtype=dtype)
    assert_as_exact_as_eager(rnn, split(wasm(rnn, x, stepwise=False), rnn, x), x)


@pytest.mark.parametrize(
    ("stack", "dtype"),
    [
        ("gru", torch.float32),
        *in_full(["lstm-projected"], [torch.float64]),
        *in_full(["rnn"], [torch.float32]),
    ],
)
def test_webassembly_runs_it_step_by_step(stack, dtype, wasm):
    rnn, x = make_rnn(dtype, **STREAMS[stack]), torch.randn(6, 2, 19, dtype=dtype)
    assert_as_exact_as_eager(rnn, split(wasm(rnn, x, stepwise=True), rnn, x), x)


@pytest.mark.full
@pytest.mark.parametrize("target", OBJECTS)
def test_every_target_gets_an_object_file_of_its_own_kind(target, tmp_path):
    rnn = make_rnn(kind=nn.LSTM, num_layers=2, proj_size=10)
    artifact = export(rnn, tmp_path, target=target, name="net")
    code = (artifact / "net.o").read_bytes()
    assert code.startswith(OBJECTS[target])
    if target in ELF_MACHINES:
        assert int.from_bytes(code[18:20], "little") == ELF_MACHINES[target]
    assert all(name in code for name in (b"net_forward", b"net_prepare", b"net_step"))
    # Nothing but itself: no C library, no runtime.
    assert not any(
        name in code for name in (b"memcpy", b"memset", b"sched_yield", b"GOMP_", b"NumbaEnv")
    )


@pytest.mark.full
def test_two_networks_link_into_one_program(tmp_path):
    (compiler,) = needs("cc")
    for name, kind in (("one", nn.RNN), ("two", nn.GRU)):
        rnnjit.export_artifact(make_rnn(kind=kind), tmp_path / name, name=name)
    main = tmp_path / "main.c"
    main.write_text(
        '#include "one/one.h"\n#include "two/two.h"\n'
        "int main(void) { return one_forward(0, 1, 0, 0, 0, 0, 0, 0, (char[640]){0}) != 1\n"
        "    || two_forward(1, -1, 0, 0, 0, 0, 0, 0, (char[640]){0}) != 1; }\n"
    )
    objects = [str(tmp_path / name / f"{name}.o") for name in ("one", "two")]
    program = tmp_path / "both"
    command = [compiler, "-Wall", "-Werror", str(main), *objects, "-o", str(program)]
    subprocess.run(command, check=True, timeout=60)
    subprocess.run([str(program)], check=True, timeout=60)

"""Protects artifacts without Python: C programs, run here and on processors that qemu emulates."""

import os
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
    run,
    split,
)
from covered import in_full
from folders import ROOT

import rnnjit
from rnnjit.artifact import manifest

STACKS = {
    "one-layer": {},
    "bidirectional": {"num_layers": 2, "bidirectional": True},
    "relu-no-bias": {"num_layers": 3, "nonlinearity": "relu", "bias": False},
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


def assert_program_agrees(command, artifact, rnn, dtype):
    for T, B in CALLS:
        x = torch.randn(T, B, 19, dtype=dtype)
        assert_as_exact_as_eager(rnn, run(command, artifact, rnn, x), x)


@pytest.mark.parametrize(
    ("stack", "dtype"),
    [
        ("bidirectional", torch.float64),
        *in_full(["bidirectional"], [torch.float32]),
        *in_full(["one-layer", "relu-no-bias"], DTYPES),
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
    commands = page.partition("## A C program")[2].partition("```sh\n")[2].partition("```")[0]
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
    ("target", "dtype"),
    [
        ("aarch64", torch.float32),
        *in_full(["aarch64"], [torch.float64]),
        *in_full(["riscv64"], DTYPES),
    ],
)
def test_another_processor_computes_the_same(target, dtype, tmp_path):
    compiler, machine = needs(*PLAYED[target])
    rnn = make_rnn(dtype, **STACKS["bidirectional"])
    artifact = export(rnn, tmp_path, target=target)
    program = build(artifact, compiler, "-static")
    assert_program_agrees([machine, program], artifact, rnn, dtype)


WASM = """
import fs from 'node:fs';
const [module, weights, x, T, B, room, out] = process.argv.slice(2);
const { instance } = await WebAssembly.instantiate(fs.readFileSync(module), {});
const { memory, rnn_forward, __heap_base } = instance.exports;
let end = (__heap_base.value + 63) & ~63;
const place = (size) => { const at = end; end = (end + size + 63) & ~63; return at; };
const files = [x, weights].map((name) => fs.readFileSync(name));
const [input, block] = files.map((file) => place(file.length));
const y = place(+out), scratch = place(+room);
memory.grow(Math.ceil(end / 65536));
files.forEach((file, i) => new Uint8Array(memory.buffer).set(file, [input, block][i]));
const states = y + +T * +B * 90 * 4;
const status = rnn_forward(BigInt(T), BigInt(B), 0, input, 0, block, y, states, scratch);
if (status !== 0) process.exit(1);
process.stdout.write(new Uint8Array(memory.buffer, y, +out));
"""


def test_webassembly_computes_the_same(tmp_path):
    linker, node = needs("wasm-ld", "node")
    rnn = make_rnn(**STACKS["bidirectional"])
    artifact = export(rnn, tmp_path, target="wasm32")
    module, script = tmp_path / "rnn.wasm", tmp_path / "run.mjs"
    exported = ("--export=rnn_forward", "--export=__heap_base")
    command = [linker, "--no-entry", *exported, str(artifact / "rnn.o"), "-o", str(module)]
    subprocess.run(command, check=True, timeout=60)
    script.write_text(WASM)
    T, B = 6, 9
    x = torch.randn(T, B, 19)
    (tmp_path / "x").write_bytes(x.numpy().tobytes())
    needed = manifest.read(artifact).machine
    room = sum(
        int(needed[f"scratch_{part}"]) * count
        for part, count in (("fixed", 1), ("per_sequence", B), ("per_row", T * B))
    )
    out = (T * B * 90 + 4 * B * 45) * 4
    arguments = (artifact / "weights.bin", tmp_path / "x", T, B, room, out)
    done = subprocess.run(
        [node, str(script), str(module), *map(str, arguments)],
        capture_output=True,
        check=True,
        timeout=60,
    )
    assert_as_exact_as_eager(rnn, split(done.stdout, rnn, x), x)


@pytest.mark.full
@pytest.mark.parametrize("target", OBJECTS)
def test_every_target_gets_an_object_file_of_its_own_kind(target, tmp_path):
    artifact = export(make_rnn(), tmp_path, target=target, name="net")
    code = (artifact / "net.o").read_bytes()
    assert code.startswith(OBJECTS[target])
    if target in ELF_MACHINES:
        assert int.from_bytes(code[18:20], "little") == ELF_MACHINES[target]
    assert b"net_forward" in code
    # Nothing but itself: no C library, no runtime.
    assert not any(name in code for name in (b"memcpy", b"sched_yield", b"GOMP_", b"NumbaEnv"))


@pytest.mark.full
def test_two_networks_link_into_one_program(tmp_path):
    (compiler,) = needs("cc")
    for name in ("one", "two"):
        rnnjit.export_artifact(make_rnn(), tmp_path / name, name=name)
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

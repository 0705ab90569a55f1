"""Protects memory: kernels never read or write out of bounds, and write to none of their inputs.

Each sweep runs in its own process, which an access out of bounds kills: see `guarded`. If
RNNJIT_FUZZ_EXAMPLES is set, each runs that many further cases.
"""

import os
import signal
import subprocess
import sys

import instruction_sets
import pytest
from folders import SUPPORT
from fuzzing import examples, thorough

import rnnjit

if sys.platform != "linux":
    pytest.skip("guard pages are made by Linux's mmap and mprotect", allow_module_level=True)

MORE = examples(1) if thorough() else 0
POSSIBLE = instruction_sets.possible()
#: The ways in which kernels are to be called at least once in a sweep of a backend.
WAYS = {
    "numba": {
        *(f"forward {way}" for way in ("direct", "hoist", "parts", "slices", "tail", "strides")),
        *(f"backward {way}" for way in ("direct", "parts", "slices", "tail", "strides", "windows")),
    },
    "tvm": {
        *(f"forward {way}" for way in ("hoist", "parts", "slices", "tail", "strides")),
        *(f"backward {way}" for way in ("parts", "slices", "tail", "strides", "windows")),
    },
}


#: Backends, and instruction sets that they are swept on.
SWEEPS = [
    pytest.param(backend, isa, marks=() if isa == POSSIBLE[0] else pytest.mark.full)
    for backend in ("numba", "tvm")
    for isa in POSSIBLE
]
if "avx512" in POSSIBLE:
    SWEEPS.append(pytest.param("numba", "amx-emulated", marks=pytest.mark.full))


def start(output, *command, isa=POSSIBLE[0]):
    """Start a Python program that can import what is in this folder; it writes to a file."""
    folders = [str(SUPPORT), *filter(None, [os.environ.get("PYTHONPATH")])]
    own = {
        "PYTHONPATH": os.pathsep.join(folders),
        "OMP_WAIT_POLICY": "passive",
        "RNNJIT_ISA": isa,
    }
    with output.open("wb") as file:
        return subprocess.Popen(
            [sys.executable, "-X", "faulthandler", *command],
            env={**os.environ, **own},
            stdout=file,
            stderr=subprocess.STDOUT,
        )


@pytest.mark.fuzz
@pytest.mark.parametrize(("backend", "isa"), SWEEPS)
def test_kernels_never_access_memory_out_of_bounds(backend, isa, tmp_path):
    missing = rnnjit.backends()[backend].missing()
    if missing:
        pytest.skip("; ".join(missing))
    output = tmp_path / "output"
    process = start(output, "-m", "guarded.sweep", backend, str(MORE), isa=isa)
    try:
        status = process.wait(timeout=600 + MORE)
    finally:
        process.kill()
        process.wait()
    *before, last = output.read_text().splitlines()
    assert status == 0, "\n".join([f"exit status {status} after:", *before[-40:], last])
    assert last.startswith("covered: ")
    assert set(WAYS[backend]) <= set(last.removeprefix("covered: ").split(", "))


ACCESSES = """
import ctypes, os, sys
import torch
from guarded.kernels import Watch, guarded_backend
from guarded.memory import Guards, allocating
from rnnjit import LayerSpec, Rows
from rnnjit.ir import RNN_TANH
from rnnjit_numba import BACKEND

guards = Guards()
end, start = guards.empty((5,), torch.float32), None
guards.at_end = False
start = guards.empty((5,), torch.float32)
guards.at_end = True
held = guards.copy(torch.ones(5))

def read(tensor, index):
    return ctypes.c_float.from_address(tensor.data_ptr() + 4 * index).value

def layer(rows_of_w):
    # One column vector and a bit; a row more than there is would belong to a lane that is masked.
    x, h0 = guards.copy(torch.ones(6, 3)), guards.copy(torch.zeros(1, 6, 17))
    weights = [guards.copy(torch.ones(rows_of_w, 3)), guards.copy(torch.ones(rows_of_w, 17))]
    with guarded_backend("numba", Watch(guards, lambda *call: None)), allocating(guards):
        layer = LayerSpec(RNN_TANH, 3, 17, 1, False)
        BACKEND.forward(layer, Rows(1, 6, 6), x, (h0,), weights, True)

accesses = {
    "the first and the last": lambda: read(end, 4) + read(start, 0) + read(held, 0),
    "one behind": lambda: read(end, 5),
    "one before": lambda: read(start, -1),
    "a write to what is read only": lambda: held.fill_(1),
    "a layer": lambda: layer(17),
    "a layer whose weights lack a row": lambda: layer(16),
}
for name, access in accesses.items():
    child = os.fork()
    if child == 0:
        access()
        os._exit(0)
    print(name, os.WTERMSIG(os.waitpid(child, 0)[1]), sep=": ", flush=True)
"""


def test_an_access_out_of_bounds_kills(tmp_path):
    output = tmp_path / "output"
    assert start(output, "-c", ACCESSES).wait(timeout=300) == 0, output.read_text()
    lines = [line.split(": ") for line in output.read_text().splitlines()]
    signals = {line[0]: int(line[1]) for line in lines if line[-1].isdecimal()}
    assert signals == {
        "the first and the last": 0,
        "one behind": signal.SIGSEGV,
        "one before": signal.SIGSEGV,
        "a write to what is read only": signal.SIGSEGV,
        "a layer": 0,
        "a layer whose weights lack a row": signal.SIGSEGV,
    }

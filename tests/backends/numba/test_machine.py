"""Protects the Numba backend on its machine: instruction sets, disk cache, processes, plans."""

import multiprocessing
import os
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import instruction_sets
import numpy as np
import pytest
import torch
from covered import in_full
from torch import nn

import rnnjit
from rnnjit.codegen import isa_named
from rnnjit.codegen.host import host_isa
from rnnjit.codegen.kernel import Kind, cache_key
from rnnjit.ir import RNN_RELU, RNN_TANH
from rnnjit_numba import kernel_modules, library, object_code

AGREES = """
import sys, torch, rnnjit
torch.manual_seed(0)
for bidirectional, dtype in ((False, torch.float32), (True, torch.float64)):
    rnn = torch.nn.RNN(19, 45, bidirectional=bidirectional).to(dtype)
    fast = rnnjit.compile(rnn, backend="numba")
    x = torch.randn(5, 13, 19, dtype=dtype, requires_grad=True)
    found = []
    for module in (rnn, fast):
        y, h = module(x)
        found.append(torch.autograd.grad(y.sin().sum() + h.sum(), [x, *rnn.parameters()]))
    for eager, ours in zip(*found):
        torch.testing.assert_close(ours, eager, rtol=1e-4, atol=1e-4)
print("numba" in sys.modules)
"""


def run(cache_directory, before="", after="", **environment):
    """Run AGREES in a process of its own; what it printed, and on which stream."""
    return subprocess.run(
        [sys.executable, "-W", "default", "-c", before + AGREES + after],
        env={**os.environ, "RNNJIT_CACHE_DIR": str(cache_directory), **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def modules(isa, dtype, cell, quantized=False):
    """The modules of all parts of a library, in an order in which each calls earlier ones."""
    yield from kernel_modules.tile_modules(isa, dtype, cell, quantized)
    yield from kernel_modules.kernel_modules(isa, dtype, cell, quantized)


#: The host's own, and the next narrower one.
NEAREST = instruction_sets.possible()[:2]


@pytest.mark.parametrize("name", [*NEAREST, *in_full(instruction_sets.possible()[2:])])
def test_every_instruction_set_agrees_with_eager(name):
    result = run(os.environ["RNNJIT_CACHE_DIR"], RNNJIT_ISA=name)
    assert result.returncode == 0, result.stderr


def test_an_unknown_instruction_set_is_named(monkeypatch):
    monkeypatch.setenv("RNNJIT_ISA", "sse5")
    with pytest.raises(ValueError, match=r"RNNJIT_ISA must be one of .*'plain'.* got 'sse5'"):
        host_isa()


@pytest.mark.full
def test_kernels_assemble_for_aarch64():
    isa = isa_named("neon", "neoverse-n1", (), "aarch64-unknown-linux-gnu")
    machine = object_code.target_machine(isa)
    assembly = [
        machine.emit_assembly(object_code.optimised(part.text, isa, part.symbols))
        for part in modules(isa, torch.float32, RNN_TANH)
    ]
    assert sum(part.count("fmla") for part in assembly) > 100


def test_modules_define_what_they_call_of_each_other():
    isa, defined = host_isa(), {"omp_get_thread_num", "omp_get_num_threads", "sched_yield"}
    for part in modules(isa, torch.float64, RNN_RELU):
        functions = list(object_code.optimised(part.text, isa, part.symbols).functions)
        called = {each.name for each in functions if each.is_declaration}
        assert {name for name in called if not name.startswith("llvm.")} <= defined
        public = {each.name for each in functions if each.linkage.name == "external"}
        assert public - called == set(part.symbols)
        defined |= set(part.symbols)
    assert {"forward_alone", "forward_team", "backward_alone", "backward_team"} <= defined


@pytest.mark.full
def test_the_applications_own_use_of_numba(tmp_path):
    own = """
import numba, numpy
@numba.njit
def total(values):
    result = 0.0
    for part in values[1:]:
        result += abs(part) ** 2
    return result
assert total(numpy.arange(4.0)) == 14.0
@numba.njit
def most(values):
    return max(values.max(), len(values))
"""
    check = "assert most(numpy.arange(9)) == 9"
    result = run(tmp_path, before=own, after=check)
    assert result.returncode == 0, result.stderr


@pytest.mark.full
def test_an_application_that_loaded_a_part_of_numba(tmp_path):
    # It has declared the overloads of tuples before the kernels' target is made.
    result = run(tmp_path, before="import numba.cpython.tupleobj\n")
    assert result.returncode == 0, result.stderr


@pytest.mark.full
def test_processes_may_compile_at_once_and_the_next_compiles_nothing(tmp_path):
    with ThreadPoolExecutor() as pool:
        at_once = [pool.submit(run, tmp_path) for _ in range(2)]
    for done in (job.result() for job in at_once):
        assert (done.returncode, done.stdout, done.stderr) == (0, "True\n", "")
    assert sorted(file.suffix for file in tmp_path.iterdir()) == [".o", ".o", ".tile", ".tile"]
    done = run(tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "False\n", "")


def test_the_tiles_are_compiled_once_for_all_cells(monkeypatch, tmp_path):
    def modules_of(name):
        def made(isa, dtype, cell, quantized):
            compiled.append((name, dtype, cell))
            yield kernel_modules.KernelModule(f"{name} {dtype}", ())

        return made

    monkeypatch.setenv("RNNJIT_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(library, "object_code", lambda text, isa, symbols: text.encode())
    monkeypatch.setattr(kernel_modules, "tile_modules", modules_of("tiles"))
    monkeypatch.setattr(kernel_modules, "kernel_modules", modules_of("kernels"))
    for cell, dtype, expected in (
        (RNN_TANH, torch.float32, ["tiles", "kernels"]),
        (RNN_RELU, torch.float32, ["kernels"]),
        (RNN_RELU, torch.float64, ["tiles", "kernels"]),
    ):
        compiled = []
        parts = library.compile_kernels(host_isa(), Kind(dtype, cell))
        assert parts == [f"tiles {dtype}".encode(), f"kernels {dtype}".encode()]
        assert compiled == [(name, dtype, cell) for name in expected]
    monkeypatch.setenv("RNNJIT_CACHE_DIR", str(tmp_path / "another"))
    compiled = []
    library.compile_kernels(host_isa(), Kind(torch.float32, RNN_RELU))
    assert [name for name, _, _ in compiled] == ["tiles", "kernels"]


def test_a_library_is_one_file():
    for parts in ([], [b""], [b"code", b"", b"\0" * 300]):
        assert library._split(library._joined(parts)) == parts


def test_new_shapes_compile_nothing(monkeypatch):
    def refuse(*args):
        raise AssertionError("compiled")

    x = torch.randn(2, 3, 4)
    rnnjit.compile(nn.RNN(4, 5), backend="numba")(x)
    monkeypatch.setattr(library, "compile_kernels", refuse)
    for T, B, I, H in ((1, 1, 1, 1), (7, 5, 3, 2), (3, 19, 140, 270)):
        y, _ = rnnjit.compile(nn.RNN(I, H), backend="numba")(torch.randn(T, B, I))
        y.sum().backward()


def _child(module, x, expected):
    # Not compared by torch: its own parallel operators hang in a process forked after their use.
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            np.testing.assert_array_equal(module(x)[0].numpy(), expected.numpy())


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_child_processes_after_use(method, tmp_path):
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"this platform cannot {method}")
    torch.manual_seed(0)
    module = rnnjit.compile(nn.RNN(30, 200), backend="numba").requires_grad_(False)
    x = torch.randn(20, 16, 30)
    expected = module(x)[0]
    with torch.no_grad():
        module(x)
    context = multiprocessing.get_context(method)
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", DeprecationWarning
        )  # forking a threaded process is the test
        process = context.Process(target=_child, args=(module, x, expected), daemon=True)
        process.start()
    process.join(120)
    assert process.exitcode == 0
    assert torch.equal(module(x)[0], expected)


def test_element_and_cell_name_the_cache_key():
    isa, made = host_isa(), library.__file__
    plain = isa_named("plain", "generic", (), isa.triple)
    kinds = [
        Kind(dtype, cell)
        for dtype in (torch.float32, torch.float64)
        for cell in (RNN_TANH, RNN_RELU)
    ]
    keys = {cache_key(isa, kind, ["numba"], made) for kind in kinds}
    keys |= {
        cache_key(isa, kinds[0]._replace(quantized=True), ["numba"], made),
        cache_key(plain, kinds[0], ["numba"], made),
        cache_key(isa, kinds[0], ["numba", "llvmlite"], made),
        cache_key(isa, kinds[0], ["numba"], rnnjit.__file__),
    }
    assert len(keys) == 8
    renamed = Kind(torch.float32, replace(RNN_TANH, name="another"))
    assert cache_key(isa, renamed, ["numba"], made) in keys

"""The Numba backend and the machine: instruction sets, the disk cache, processes, plans."""

import multiprocessing
import os
import subprocess
import sys
import warnings
from pathlib import Path

import instruction_sets
import numpy as np
import pytest
import torch
from torch import nn

import rnnjit
from rnnjit import LayerSpec, Rows, codecache
from rnnjit.cpu import isa_named
from rnnjit_numba import codegen, frontend, host, library, plan

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


@pytest.mark.parametrize("name", instruction_sets.possible())
def test_every_instruction_set_agrees_with_eager(name):
    result = run(os.environ["RNNJIT_CACHE_DIR"], RNNJIT_ISA=name)
    assert result.returncode == 0, result.stderr


def test_an_unknown_instruction_set_is_named(monkeypatch):
    monkeypatch.setenv("RNNJIT_ISA", "sse5")
    with pytest.raises(ValueError, match=r"RNNJIT_ISA must be one of .*'plain'.* got 'sse5'"):
        host.host_isa()


def test_kernels_assemble_for_aarch64():
    isa = isa_named("neon", "neoverse-n1", (), "aarch64-unknown-linux-gnu")
    machine = codegen.target_machine(isa)
    assembly = [
        machine.emit_assembly(codegen.optimised(part.text, isa, part.symbols))
        for part in frontend.parts(isa, 32)
    ]
    assert sum(part.count("fmla") for part in assembly) > 100


def test_parts_define_what_they_call_of_each_other():
    isa, defined = host.host_isa(), {"omp_get_thread_num", "omp_get_num_threads", "sched_yield"}
    for part in frontend.parts(isa, 64):
        functions = list(codegen.optimised(part.text, isa, part.symbols).functions)
        called = {each.name for each in functions if each.is_declaration}
        assert {name for name in called if not name.startswith("llvm.")} <= defined
        public = {each.name for each in functions if each.linkage.name == "external"}
        assert public - called == set(part.symbols)
        defined |= set(part.symbols)
    assert {"forward_alone", "forward_team", "backward_alone", "backward_team"} <= defined


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


def test_a_second_process_compiles_nothing(tmp_path):
    first = run(tmp_path)
    assert (first.returncode, first.stdout.strip()) == (0, "True"), first.stderr
    second = run(tmp_path)
    assert (second.returncode, second.stdout.strip()) == (0, "False"), second.stderr
    assert tmp_path.stat().st_mode & 0o077 == 0 or tmp_path.stat().st_uid == os.getuid()


def test_damaged_cache_files_are_compiled_anew(tmp_path, monkeypatch):
    monkeypatch.setenv("RNNJIT_CACHE_DIR", str(tmp_path / "cache"))
    codecache.keep("key", b"code")
    assert codecache.fetch("key") == b"code"
    assert (tmp_path / "cache").stat().st_mode & 0o777 == 0o700
    file = tmp_path / "cache" / "key.o"
    for content in (b"", file.read_bytes()[:-1], file.read_bytes() + b"!", b"\0" * 100):
        file.write_bytes(content)
        assert codecache.fetch("key") is None


def test_a_library_is_one_file(tmp_path, monkeypatch):
    monkeypatch.setenv("RNNJIT_CACHE_DIR", str(tmp_path))
    for parts in ([], [b""], [b"code", b"", b"\0" * 300]):
        codecache.keep("key", library._joined(parts))
        assert library._split(codecache.fetch("key")) == parts


def test_a_directory_that_others_can_write_to_is_not_used(tmp_path, monkeypatch):
    monkeypatch.setenv("RNNJIT_CACHE_DIR", str(tmp_path))
    codecache.keep("key", b"code")
    tmp_path.chmod(0o777)
    assert codecache.fetch("key") is None
    with pytest.warns(UserWarning, match="chmod 700"):
        codecache.keep("other", b"code")
    assert not (tmp_path / "other.o").exists()


def test_a_cache_that_cannot_be_written_warns_once_and_works(tmp_path, monkeypatch):
    blocked = tmp_path / "file"
    blocked.write_text("not a directory")
    monkeypatch.setenv("RNNJIT_CACHE_DIR", str(blocked / "cache"))
    with pytest.warns(UserWarning, match="RNNJIT_CACHE_DIR"):
        codecache.keep("key", b"code")
    assert codecache.fetch("key") is None


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


@pytest.mark.parametrize("threads", [1, 2, 3, 8, 64])
@pytest.mark.parametrize("D", [1, 2])
@pytest.mark.parametrize("B", [1, 2, 3, 7, 16, 100])
@pytest.mark.parametrize("H", [1, 20, 64, 500])
def test_plans_cover_the_batch_with_the_threads_there_are(threads, D, B, H):
    layer = LayerSpec("tanh", 24, H, D, True)
    vectors = -(-H // 16)
    cut = plan.plan(layer, Rows(50, B, 50 * B), threads, vectors)
    assert 1 <= cut.threads <= max(threads, D)
    assert (cut.slices - 1) * cut.slice_rows < B <= cut.slices * cut.slice_rows
    assert cut.parts == 1 or (cut.slices == 1 and D * cut.parts <= cut.threads)
    assert 1 <= cut.parts <= vectors


def test_sources_alone_name_the_cache_key():
    keys = {library._key(host.host_isa(), bits) for bits in (32, 64)}
    assert len(keys) == 2
    assert all(len(key) == 32 for key in keys)
    assert Path(library.__file__).parent.name == "rnnjit_numba"

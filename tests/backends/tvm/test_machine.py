"""Protects the TVM backend on its machine: instruction sets, object code, processes."""

import multiprocessing
import os
import re
import subprocess
import sys
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from covered import in_full
from torch import nn

import rnnjit
from rnnjit.codegen import isa_named
from rnnjit.codegen.host import host_isa
from rnnjit.ir import RNN_RELU, RNN_TANH
from rnnjit_tvm import compiler
from rnnjit_tvm.tile_shapes import tile_shapes

AGREES = """
import torch, rnnjit
torch.manual_seed(0)
for bidirectional, dtype in ((False, torch.float32), (True, torch.float64)):
    rnn = torch.nn.RNN(19, 45, bidirectional=bidirectional).to(dtype)
    x = torch.randn(5, 13, 19, dtype=dtype, requires_grad=True)
    found = []
    for module in (rnn, rnnjit.compile(rnn, backend="tvm")):
        y, h = module(x)
        found.append(torch.autograd.grad(y.sin().sum() + h.sum(), [x, *rnn.parameters()]))
    for eager, ours in zip(*found):
        torch.testing.assert_close(ours, eager, rtol=1e-4, atol=1e-4)
"""


def possible_instruction_sets(monkeypatch):
    monkeypatch.setenv("RNNJIT_ISA", "none such")
    with pytest.raises(ValueError, match="RNNJIT_ISA must be one of") as raised:
        host_isa()
    return re.findall(r"'(avx512|avx2|neon|plain)'", str(raised.value))


@pytest.mark.parametrize("name", ["avx512", "neon", *in_full(["avx2", "plain"])])
def test_lesser_instruction_sets_agree_with_eager(name, tmp_path, monkeypatch):
    best, *others = possible_instruction_sets(monkeypatch)
    if name == best:
        pytest.skip("the conformance kit runs on it")
    if name not in others:
        pytest.skip(f"this machine has no {name}")
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", AGREES],
        env={**os.environ, "RNNJIT_CACHE_DIR": str(tmp_path), "RNNJIT_ISA": name},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.full
def test_names_of_features_that_tvms_llvm_lacks_are_left_out(capfd):
    isa = host_isa()
    named = replace(isa, features=(*isa.features, "-of-another-release"))
    assert compiler.assembly(named, torch.float32, RNN_TANH) == compiler.assembly(
        isa, torch.float32, RNN_TANH
    )
    assert "recognized" not in capfd.readouterr().err


def test_kernels_assemble_for_aarch64():
    isa = isa_named("neon", "neoverse-n1", (), "aarch64-unknown-linux-gnu")
    assert compiler.assembly(isa, torch.float32, RNN_TANH).count("fmla") > 100


@pytest.mark.parametrize(
    ("name", "cpu", "rows", "vectors"),
    [
        ("avx512", "skylake-avx512", 8, 3),
        pytest.param("avx2", "haswell", 4, 3, marks=pytest.mark.full),
    ],
)
def test_tiles_stay_in_registers(name, cpu, rows, vectors):
    isa = isa_named(name, cpu, (), "x86_64-unknown-linux-gnu")
    assert tile_shapes(isa)[0] == (rows, vectors)
    pattern = rf"\ntile_{rows}x{vectors}:(.*?)\.cfi_endproc"
    tile = re.search(pattern, compiler.assembly(isa, torch.float32, RNN_TANH), re.DOTALL).group(1)
    loops = [block for block in re.split(r"\n\.LBB\d+_\d+:", tile) if "vfmadd" in block]
    assert loops
    for block in loops:
        assert block.count("vfmadd") % (rows * vectors) == 0
        assert "(%rsp)" not in block


def test_object_code_asks_for_nothing_of_tvms_run_time():
    isa = isa_named("avx2", "haswell", (), "x86_64-unknown-linux-gnu")
    called = set(
        re.findall(r"\bcallq?\s+([^\s*%@]+)", compiler.assembly(isa, torch.float64, RNN_RELU))
    )
    assert {"omp_get_thread_num", "omp_get_num_threads"} <= called
    assert not [name for name in called if "tvm" in name.lower()]


def test_new_shapes_compile_nothing(monkeypatch):
    rnnjit.compile(nn.RNN(4, 5), backend="tvm")(torch.randn(2, 3, 4))

    def refuse(*args):
        raise AssertionError("compiled")

    monkeypatch.setattr(compiler, "compile_kernels", refuse)
    for T, B, I, H in ((1, 1, 1, 1), (7, 5, 3, 2), (3, 19, 140, 270)):
        y, _ = rnnjit.compile(nn.RNN(I, H), backend="tvm")(torch.randn(T, B, I))
        y.sum().backward()


def results(module, x):
    y, h_n = module(x)
    grads = torch.autograd.grad([y, h_n], [x, *module.parameters()], [y * 2, h_n])
    return [tensor.detach().numpy() for tensor in (y, h_n, *grads)]


def child(module, x, expected):
    # Not compared by torch, and small: its own parallel operators, which large tensors go through,
    # hang in a process forked after their use.
    torch.set_num_threads(2)
    for ours, parents in zip(results(module, x), expected, strict=True):
        np.testing.assert_array_equal(ours, parents)


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.full)])
def test_child_processes_after_use(method):
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"this platform cannot {method}")
    torch.manual_seed(0)
    module = rnnjit.compile(nn.RNN(30, 100), backend="tvm")
    x = torch.randn(10, 16, 30, requires_grad=True)
    expected = results(module, x)
    context = multiprocessing.get_context(method)
    with warnings.catch_warnings():
        # Forking a threaded process is the test.
        warnings.simplefilter("ignore", DeprecationWarning)
        process = context.Process(target=child, args=(module, x, expected), daemon=True)
        process.start()
    process.join(120)
    assert process.exitcode == 0
    for ours, again in zip(results(module, x), expected, strict=True):
        np.testing.assert_array_equal(ours, again)

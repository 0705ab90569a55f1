"""Protects the Inductor backend's behaviour: what it declines, costs and leaves unchanged."""

import subprocess
import sys

import pytest
import torch
from short_chunks import SHORT_CHUNKS
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

import rnnjit
from rnnjit.cells import GRU, LSTM, OPERATIONS, RNN_RELU
from rnnjit.dispatch.choice import verdict
from rnnjit.runtime import torch_private
from rnnjit_inductor import BACKEND, compiler, toolchain

SPEC = rnnjit.RNNSpec(2, 3)


def problem(dtype=torch.float32, device="cpu"):
    return rnnjit.Problem(dtype, device, 20, 4, 80, False, False)


def test_importing_and_asking_it_imports_no_compiler():
    code = (
        # Builds of PyTorch for CUDA import triton for its tracer, which rnnjit's operators import.
        "import sys, torch._dynamo; before = set(sys.modules);"
        "import rnnjit, rnnjit_inductor as r; r.BACKEND.missing();"
        "r.BACKEND.why_not(rnnjit.RNNSpec(1, 1),"
        " rnnjit.Problem(torch.float32, 'cpu', 1, 1, 1, False, False));"
        "new = set(sys.modules) - before;"
        "print([name for name in ('torch._inductor.compile_fx', 'triton') if name in new])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.strip() == "[]"


def reasons(spec, asked):
    return verdict(BACKEND, spec, asked).reasons


def test_it_declines_what_it_cannot_do():
    (reason,) = reasons(SPEC, problem(torch.complex64))
    assert "complex64" in reason
    (reason,) = reasons(rnnjit.RNNSpec(2, 3, cell=LSTM), problem())
    assert "'lstm' has 2 states" in reason
    (reason,) = reasons(rnnjit.RNNSpec(2, 3, cell=GRU), problem())
    assert "gate n apart" in reason
    (reason,) = reasons(rnnjit.RNNSpec(2, 3, proj_size=1), problem())
    assert "proj_size" in reason


def test_it_lowers_every_operation():
    assert BACKEND.operations == frozenset(OPERATIONS)


def test_it_says_that_a_cpp_compiler_is_lacking(monkeypatch):
    monkeypatch.setattr(toolchain.shutil, "which", lambda name: None)
    (reason,) = BACKEND.why_not(SPEC, problem())
    assert "C++ compiler" in reason
    assert "CXX" in reason
    module = rnnjit.compile(nn.RNN(2, 3), backend=type(BACKEND)())
    with pytest.raises(rnnjit.UnsupportedError, match=r"C\+\+ compiler"):
        module(torch.randn(20, 4, 2))


def test_it_says_that_triton_is_lacking_for_a_gpu(monkeypatch):
    monkeypatch.setattr(toolchain, "find_spec", lambda name: None)
    (reason,) = BACKEND.why_not(SPEC, problem(device="cuda"))
    assert "triton for cuda" in reason


def test_it_is_missing_where_torch_compile_is(monkeypatch):
    def check():
        raise RuntimeError("Python 4 is not supported")

    monkeypatch.setattr("torch._dynamo.eval_frame.check_if_dynamo_supported", check)
    toolchain.unsupported.cache_clear()
    try:
        (reason,) = BACKEND.missing()
    finally:
        toolchain.unsupported.cache_clear()
    assert "Python 4 is not supported" in reason


def test_it_is_missing_where_torch_lacks_what_it_calls(monkeypatch):
    monkeypatch.setattr(torch_private, "_INDUCTOR", ("torch._inductor.compiled_elsewhere",))
    toolchain.unsupported.cache_clear()
    try:
        (reason,) = BACKEND.missing()
    finally:
        toolchain.unsupported.cache_clear()
    assert "lacks torch._inductor.compiled_elsewhere" in reason


def test_a_failed_compilation_names_the_backend_and_its_cause(monkeypatch):
    def fail(key):
        raise OSError("no space left")

    monkeypatch.setattr(compiler, "_COMPILED", {})
    monkeypatch.setattr(compiler, "_compile", fail)
    module = rnnjit.compile(nn.RNN(2, 3), backend="inductor")
    with pytest.raises(compiler.CompilationError, match=r"backend 'inductor'.*no space left") as e:
        module(torch.randn(20, 4, 2))
    assert isinstance(e.value.__cause__, OSError)


def step(module, x):
    y, h_n = module(x)
    y = y.data if isinstance(y, nn.utils.rnn.PackedSequence) else y
    (y.sum() + h_n.sum()).backward()


@pytest.mark.full
@pytest.mark.parametrize("backend", [SHORT_CHUNKS, BACKEND])
def test_nothing_is_compiled_anew_for_other_sizes(backend, monkeypatch):
    step(rnnjit.compile(nn.RNN(3, 5), backend=backend), torch.randn(16, 4, 3))
    known = dict(compiler._COMPILED)

    def never(key):
        raise AssertionError(f"compiled anew: {key}")

    monkeypatch.setattr(compiler, "_compile", never)
    for T, B, I, H in ((16, 2, 1, 1), (17, 5, 3, 16), (64, 8, 7, 33), (33, 3, 2, 64)):
        step(rnnjit.compile(nn.RNN(I, H), backend=backend), torch.randn(T, B, I))
        bidirectional = rnnjit.compile(nn.RNN(I, H, bidirectional=True), backend=backend)
        step(bidirectional, torch.randn(T, B, I))
        lengths = [max(1, T - 5 * b) for b in range(B)]
        step(bidirectional, pack_padded_sequence(torch.randn(T, B, I), lengths))
    assert known == compiler._COMPILED


def test_a_short_call_compiles_nothing(monkeypatch):
    monkeypatch.setattr(compiler, "_COMPILED", {})
    step(rnnjit.compile(nn.RNN(3, 5), backend="inductor"), torch.randn(15, 4, 3))
    assert not compiler._COMPILED


@pytest.mark.full
def test_inside_a_compiled_model_and_whatever_becomes_of_it(monkeypatch):
    torch.manual_seed(0)
    eager = nn.Sequential(nn.Linear(4, 3), nn.RNN(3, 5)).double()
    fast = rnnjit.compile(eager, backend="inductor")
    whole = torch.compile(lambda x: fast(x)[0], fullgraph=True)
    x = torch.randn(20, 4, 4, dtype=torch.float64)
    expected = eager(x)[0]
    torch.testing.assert_close(whole(x), expected, rtol=1e-12, atol=1e-12)
    known = dict(compiler._COMPILED)
    torch.compiler.reset()
    with torch.compiler.set_stance("force_eager"):
        torch.testing.assert_close(fast(x)[0], expected, rtol=1e-12, atol=1e-12)
    with torch.compiler.set_stance("fail_on_recompile"):
        torch.testing.assert_close(fast(x)[0], expected, rtol=1e-12, atol=1e-12)
    assert known == compiler._COMPILED


def test_no_setting_of_inductor_is_left_changed():
    import torch._inductor.config as config

    before = config.save_config_portable()
    compiler._compile(
        compiler.Key(
            "forward", RNN_RELU, torch.float64, "cpu", compiler.Plan(1, compiler.MATRIX, 1)
        )
    )
    assert config.save_config_portable() == before

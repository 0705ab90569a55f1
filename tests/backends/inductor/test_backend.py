"""Protects the Inductor backend's behaviour: what it declines, costs and leaves unchanged."""

import os
import subprocess
import sys

import pytest
import torch
from short_chunks import SHORT_CHUNKS
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

import rnnjit
from rnnjit.dispatch.choice import verdict
from rnnjit.ir import GRU, LSTM, OPERATIONS, RNN_RELU, CellSpec
from rnnjit.ir.builder import relu, sigmoid, tanh
from rnnjit.runtime import torch_private
from rnnjit_inductor import BACKEND, InductorBackend, compiler, steps, toolchain
from rnnjit_inductor.plan import MATRIX, ROWS, Plan, plan

SPEC = rnnjit.RNNSpec(2, 3)


def ugrnn(zx, zh, h):
    g = sigmoid(zx[1] + zh[1])
    h = g * h + (1.0 - g) * tanh(zx[0] + zh[0])
    return h, h


UGRNN = CellSpec.trace(ugrnn, name="ugrnn", gates=["c", "g"], states=["h"])
INDEPENDENT = CellSpec.trace(
    *(lambda zx, zh, h, u: (relu(zx[0] + u * h),) * 2,),
    name="independent",
    gates=["z"],
    states=["h"],
    parameters=["u"],
)
of_operand = CellSpec.trace(
    *(lambda zx, zh, h: (tanh(zx[0] + zh[0]),) * 2,),
    name="of operand",
    gates=["z"],
    states=["h"],
    operand=relu,
)
of_output = CellSpec.trace(
    *(lambda zx, zh, h: (relu(zx[0] + zh[0]), tanh(zx[0] + zh[0])),),
    name="of output",
    gates=["z"],
    states=["h"],
)


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
    (reason,) = reasons(rnnjit.RNNSpec(2, 3, cell=GRU, proj_size=1), problem())
    assert "proj_size" in reason
    assert "'gru'" in reason
    for cell, word in ((of_operand, "operand"), (of_output, "output")):
        (reason,) = reasons(rnnjit.RNNSpec(2, 3, cell=cell), problem())
        assert word in reason


def test_it_computes_every_layer_of_torch():
    for cell, proj_size in ((RNN_RELU, 0), (LSTM, 0), (LSTM, 1), (GRU, 0)):
        spec = rnnjit.RNNSpec(2, 3, cell=cell, proj_size=proj_size)
        assert not any(reasons(spec, problem(dtype)) for dtype in BACKEND.dtypes)


def test_it_lowers_every_operation():
    assert BACKEND.operations == frozenset(OPERATIONS)


def test_it_says_that_a_cpp_compiler_is_lacking(monkeypatch):
    monkeypatch.setattr(toolchain, "_on_path", lambda names, path: False)
    (reason,) = BACKEND.why_not(SPEC, problem())
    assert "C++ compiler" in reason
    assert "CXX" in reason
    module = rnnjit.compile(nn.RNN(2, 3), backend=type(BACKEND)())
    with pytest.raises(rnnjit.UnsupportedError, match=r"C\+\+ compiler"):
        module(torch.randn(20, 4, 2))


def test_the_path_that_compilers_are_on_is_part_of_the_answer(monkeypatch, tmp_path):
    assert BACKEND.why_not(SPEC, problem()) == []
    monkeypatch.setenv("PATH", str(tmp_path))
    (reason,) = BACKEND.why_not(SPEC, problem())
    assert "C++ compiler" in reason


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

    monkeypatch.setattr(compiler._chunk, "made", {})
    monkeypatch.setattr(compiler, "_compile", fail)
    module = rnnjit.compile(nn.RNN(2, 3), backend="inductor")
    with pytest.raises(compiler.CompilationError, match=r"backend 'inductor'.*no space left") as e:
        module(torch.randn(40, 4, 2))
    assert isinstance(e.value.__cause__, OSError)


def step(module, x):
    y, h_n = module(x)
    y = y.data if isinstance(y, nn.utils.rnn.PackedSequence) else y
    (y.sum() + h_n.sum()).backward()


@pytest.mark.full
@pytest.mark.parametrize("backend", [SHORT_CHUNKS, BACKEND])
def test_nothing_is_compiled_anew_for_other_sizes(backend, monkeypatch):
    step(rnnjit.compile(nn.RNN(3, 5), backend=backend), torch.randn(40, 4, 3))
    known = dict(compiler._chunk.made)
    assert known

    def never(key):
        raise AssertionError(f"compiled anew: {key}")

    monkeypatch.setattr(compiler, "_compile", never)
    for T, B, I, H in ((32, 2, 1, 1), (33, 5, 3, 16), (64, 8, 7, 33), (41, 3, 2, 64)):
        step(rnnjit.compile(nn.RNN(I, H), backend=backend), torch.randn(T, B, I))
        bidirectional = rnnjit.compile(nn.RNN(I, H, bidirectional=True), backend=backend)
        step(bidirectional, torch.randn(T, B, I))
        lengths = [max(1, T - 5 * b) for b in range(B)]
        step(bidirectional, pack_padded_sequence(torch.randn(T, B, I), lengths))
    assert known == compiler._chunk.made


def test_a_short_call_compiles_nothing(monkeypatch):
    monkeypatch.setattr(compiler._chunk, "made", {})
    step(rnnjit.compile(nn.RNN(3, 5), backend="inductor"), torch.randn(15, 4, 3))
    assert not compiler._chunk.made


@pytest.mark.full
def test_inside_a_compiled_model_and_whatever_becomes_of_it(monkeypatch):
    torch.manual_seed(0)
    eager = nn.Sequential(nn.Linear(4, 3), nn.RNN(3, 5)).double()
    fast = rnnjit.compile(eager, backend="inductor")
    whole = torch.compile(lambda x: fast(x)[0], fullgraph=True)
    x = torch.randn(40, 4, 4, dtype=torch.float64)
    expected = eager(x)[0]
    torch.testing.assert_close(whole(x), expected, rtol=1e-12, atol=1e-12)
    known = dict(compiler._chunk.made)
    assert known
    torch.compiler.reset()
    with torch.compiler.set_stance("force_eager"):
        torch.testing.assert_close(fast(x)[0], expected, rtol=1e-12, atol=1e-12)
    with torch.compiler.set_stance("fail_on_recompile"):
        torch.testing.assert_close(fast(x)[0], expected, rtol=1e-12, atol=1e-12)
    assert known == compiler._chunk.made


@pytest.mark.full
def test_no_setting_of_inductor_is_left_changed():
    import torch._inductor.config as config

    before = config.save_config_portable()
    compiler._compile(
        compiler.Key(
            "forward", RNN_RELU, torch.float64, "cpu", compiler.Plan(1, compiler.MATRIX, 1)
        )
    )
    assert config.save_config_portable() == before


def test_compiling_for_the_cpu_is_silent_on_cuda(tmp_path):
    """Of a build of PyTorch for CUDA, on a machine with a toolkit and no GPU."""
    code = (
        "import logging, torch;"
        "torch.version.cuda = '13.0';"
        "torch.cuda._is_compiled = lambda: True;"
        "torch.cuda.is_available = lambda: False;"
        "{};"
        "import torch.utils.cpp_extension as paths;"
        "print(paths.CUDA_HOME);"
        "logging.getLogger(paths.__name__).warning('of something else')"
    )
    quietly = "from rnnjit_inductor import toolchain; toolchain.import_paths_quietly()"
    said = [_stderr(code.format(first), tmp_path) for first in ("pass", quietly)]
    assert "No CUDA runtime is found" in said[0]
    assert "CUDA" not in said[1]
    assert "of something else" in said[1]


def _stderr(code, cuda_home):
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "CUDA_HOME": str(cuda_home)},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert done.stdout == f"{cuda_home}\n"
    return done.stderr


def test_a_compilation_for_the_cpu_finds_paths_quietly_first(monkeypatch):
    def asked():
        raise RuntimeError("asked for paths")

    monkeypatch.setattr(compiler, "import_paths_quietly", asked)
    own = Plan(3, MATRIX, 1)  # that no other test compiles
    key = compiler.Key("forward", RNN_RELU, torch.float64, "cpu", own)
    with pytest.raises(compiler.CompilationError, match="asked for paths"):
        compiler.compiled(key)


def test_it_says_for_which_calls_it_compiles_long():
    def seconds(cell, T, needs_grad, packed=False):
        return BACKEND.compile_seconds(
            rnnjit.RNNSpec(64, 256, cell=cell),
            rnnjit.Problem(torch.float32, "cpu", T, 4, 4 * T, packed, needs_grad),
        )

    assert seconds(GRU, 100, True) > seconds(GRU, 100, False) >= 10
    assert seconds(GRU, 5, True) == seconds(GRU, 5, False) == 0.0
    assert seconds(LSTM, 100, True, packed=True) > seconds(LSTM, 100, True) == 0.0


def test_it_defers_where_torchs_operator_is_as_fast():
    def reasons(cell, T=100, B=4, dropout=0.0, needs_grad=True, packed=False):
        spec = rnnjit.RNNSpec(64, 64, num_layers=2, cell=cell, dropout=dropout)
        asked = rnnjit.Problem(torch.float32, "cpu", T, B, T * B, packed, needs_grad)
        return BACKEND.defers(spec, asked)

    (reason,) = reasons(LSTM, dropout=0.5)
    assert "dropout" in reason
    assert reasons(LSTM) == reasons(GRU, dropout=0.5) == []
    assert reasons(LSTM, dropout=0.5, needs_grad=False) == []
    (reason,) = reasons(LSTM, B=1, packed=True)
    assert "once more" in reason
    for call in ({"needs_grad": False}, {"T": 32}):
        (reason,) = reasons(GRU, packed=True, **call)
        assert "packed" in reason
        assert reasons(UGRNN, packed=True, **call) == []
    assert reasons(GRU, packed=True) == reasons(LSTM, packed=True) == []


def planned(cell, T, B, H, dtype=torch.float32, keep=True, packed=False, device="cpu"):
    sizes = torch.full((T,), B) if packed else None
    rows = rnnjit.Rows(T, B, T * B, sizes)
    return plan(rnnjit.RNNSpec(8, H, cell=cell).layer(0), rows, dtype, device, 2, keep)


def test_what_is_compiled():
    # Nothing for few steps, half precision, and dense LSTM layers in float32, which oneDNN runs.
    assert planned(GRU, 15, 4, 64) is None
    assert planned(GRU, 100, 4, 64, torch.bfloat16) is None
    assert planned(LSTM, 100, 4, 64) is None
    assert planned(LSTM, 100, 16, 64, torch.float64).tile == ROWS
    assert planned(LSTM, 100, 4, 256, packed=True).tile == ROWS
    # Torch's product for one row, small products and large weights; its operator for such forward
    # passes.
    for size in ((1, 256), (4, 64), (4, 1024)):
        assert planned(GRU, 100, *size).tile == MATRIX
        assert planned(GRU, 100, *size, keep=False) is None
        assert planned(GRU, 100, *size, packed=True).tile == MATRIX
    assert planned(GRU, 100, 4, 256, keep=False).tile == ROWS
    assert planned(GRU, 100, 4, 256, keep=False, packed=True) is None
    assert planned(LSTM, 100, 1, 256, packed=True) is None
    # Few steps of small products are torch's, where it has an operator.
    assert planned(GRU, 16, 4, 64) is None
    assert planned(GRU, 16, 4, 256).tile == ROWS
    assert planned(UGRNN, 16, 4, 64, keep=False).tile == MATRIX
    assert planned(GRU, 100, 4, 256, torch.bfloat16, device="cuda").tile == MATRIX
    # Without a recurrent product there is nothing to tile.
    assert planned(UGRNN, 100, 16, 256).tile == ROWS
    assert planned(INDEPENDENT, 100, 16, 256).tile == MATRIX
    # Tiles read the weights for every four rows, torch's product more seldom.
    assert planned(UGRNN, 100, 128, 512).tile == MATRIX
    assert planned(RNN_RELU, 100, 128, 512).tile == ROWS
    # A chunk has fewer steps, the more gates there are.
    assert [planned(cell, 100, 2, 64, packed=True).steps for cell in (RNN_RELU, GRU, LSTM)] == [
        8,
        5,
        4,
    ]


def test_a_packed_forward_pass_without_chunks_is_torchs(monkeypatch):
    torch.manual_seed(0)
    eager = nn.LSTM(3, 5, proj_size=2)
    fast = rnnjit.compile(eager, backend="inductor")
    packed = pack_padded_sequence(torch.randn(6, 3, 3), [6, 4, 1])
    with torch.no_grad():
        expected = eager(packed)
        monkeypatch.setattr(steps, "walk_forward", None)
        y, states = fast(packed)
    assert torch.equal(y.data, expected[0].data)
    assert all(map(torch.equal, states, expected[1]))


@pytest.mark.parametrize("lengths", [None, [20, 7, 1]], ids=["dense", "packed"])
@pytest.mark.parametrize("make", [nn.LSTM, nn.GRU])
def test_the_backward_pass_of_a_graph(make, lengths):
    """A graph holds y alone: the rest is computed anew, by torch's operator or step by step."""
    torch.manual_seed(0)
    eager = make(3, 5)
    fast = rnnjit.compile(eager, backend=InductorBackend(lambda *call: None))
    x = torch.randn(20, 3, 3)
    x = x if lengths is None else pack_padded_sequence(x, lengths)
    traced = torch.compile(lambda x: fast(x), backend="aot_eager")
    for module in (eager, traced):
        y, _ = module(x)
        y = y if lengths is None else y.data
        found = torch.autograd.grad((y * y).sum(), list(eager.parameters()))
        if module is eager:
            expected = found
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)

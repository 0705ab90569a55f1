"""Protects torch.compile, torch.export and AOTInductor of every kind of layer: eager's values."""

import shutil

import pytest
import torch
from eager_pair import CLOSE, B, H, I, T
from layer_kinds import KINDS, first_of, initial, kinds_on_few, states, width
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.export import Dim

import rnnjit
from rnnjit.dispatch.registry import key_of
from rnnjit.execution import torch_ops as ops
from rnnjit.frontend.capture import cell_of

# Dynamo and Inductor warn of torch's own deprecations when they are first imported.
pytestmark = pytest.mark.filterwarnings(
    "ignore:`torch.jit.:DeprecationWarning",
    "ignore:The .grad attribute of a Tensor:UserWarning",  # by torch's checks of operators
)
inductor = pytest.mark.skipif(shutil.which("g++") is None, reason="Inductor needs a C++ compiler")


class Tagger(nn.Module):
    """Takes and gives all states, between other operations."""

    def __init__(self, make, **config):
        super().__init__()
        torch.manual_seed(0)
        self.rnn = make(I, H, 2, bidirectional=True, dtype=torch.float64, **config)
        self.head = nn.Linear(2 * width(self.rnn), 2, dtype=torch.float64)

    def forward(self, x, hx):
        y, last = self.rnn(torch.sin(x), hx)
        return self.head(y).tanh(), *(2 * state for state in states(last))


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()


def inputs(model, steps=T, batch=B):
    x = torch.randn(steps, batch, I, dtype=torch.float64)
    return x, initial(model.rnn, batch)


def assert_trains_alike(traced, eager, x, hx):
    leaves = (x, *states(hx), *eager.parameters())
    for leaf in leaves:
        leaf.requires_grad_()
    results = []
    for module in (eager, traced):
        found = module(x, hx)
        loss = sum((output * output.cos()).sum() for output in found)
        results.append((found, torch.autograd.grad(loss, leaves)))
    torch.testing.assert_close(results[1], results[0], **CLOSE)


@pytest.mark.parametrize("kind", kinds_on_few("packed", "resets", "states"))
def test_the_operators_pass_torchs_own_checks(kind):
    make, backend, how = kind
    rnn = make(I, H, bidirectional=True, dtype=torch.float64)
    x = torch.randn(6, I, dtype=torch.float64, requires_grad=True)
    hx = [state.requires_grad_() for state in states(initial(rnn, 3))]
    rows, steps, reset = torch.tensor([3, 2, 1]), 3, None
    if how == "resets":
        rows, steps = None, 2
        reset = torch.tensor([[True, False, False], [False, True, False]])
        shapes = [(2, 3, *state.shape[::2]) for state in hx]
        hx += [torch.randn(each, dtype=x.dtype, requires_grad=True) for each in shapes]
    cell = (cell_of(rnn).text, H, True, rnn.proj_size)
    weights, key = list(rnn.parameters()), key_of(backend)
    arguments = (x, rows, steps, hx, weights, reset, *cell, how == "states", True, key)
    torch.library.opcheck(ops.layer_op._opoverload, arguments)
    with torch.no_grad():
        outputs = list(torch.ops.rnnjit.layer(*arguments))
    x, *rest = (tensor.detach() for tensor in (x, *hx, *weights))
    hx, weights = rest[: len(hx)], rest[len(hx) :]
    of_hx = [how == "resets", *[False] * len(hx)][: len(hx)]
    needs = [True, *reversed(of_hx), *[True, False, True, True, True][: len(weights) // 2] * 2]
    for place in range(len(outputs)):
        given = [place == other for other in range(len(outputs))]
        grads = [torch.ones_like(outputs[place])]
        tensors = (x, rows, steps, hx, weights, reset, outputs, grads, given, needs)
        torch.library.opcheck(torch.ops.rnnjit.layer_backward.default, (*tensors, *cell, key))


@pytest.mark.parametrize("kind", kinds_on_few())
def test_one_graph_for_any_length_and_batch(kind):
    make, backend = kind
    model, counter = Tagger(make), CompileCounterWithBackend("aot_eager")
    fast = rnnjit.compile(model, backend=backend)
    traced = torch.compile(fast, backend=counter, fullgraph=True, dynamic=True)
    counts = []
    # torch takes sizes that are equal in the first call for one: no other size is 7 or 3.
    for steps, batch in ((7, 3), (30, 6), (9, 8)):
        assert_trains_alike(traced, model, *inputs(model, steps, batch))
        counts.append(counter.frame_count)
    assert counts[-1] == counts[0]


def test_gradients_of_what_the_loss_does_not_depend_on():
    """Of one step, c depends neither on the weight of the projection nor, from zeros, on W_hh."""
    torch.manual_seed(0)
    rnn = KINDS["projected"](I, H, dtype=torch.float64)
    fast = rnnjit.compile(rnn, backend="eager")
    # AOTAutograd would pass zeros on for the gradients of y and h.
    traced = torch.compile(fast, backend="eager", fullgraph=True)
    x, leaves, results = torch.randn(1, B, I, dtype=torch.float64), list(rnn.parameters()), []
    for module in (rnn, traced):
        _, (_, c) = module(x)
        results.append(torch.autograd.grad(c.sin().sum(), leaves, materialize_grads=True))
    torch.testing.assert_close(results[1], results[0], **CLOSE)
    assert not results[1][-1].any()


@inductor
@pytest.mark.parametrize("kind", first_of("LSTM"))
def test_inductor(kind):
    model = Tagger(KINDS[kind])
    traced = torch.compile(rnnjit.compile(model), fullgraph=True)
    assert_trains_alike(traced, model, *inputs(model))


def exported(model, example):
    """A program for any T and B above one, without gradients."""
    steps, batch = Dim("T", min=2), Dim("B", min=2)
    given = tuple({1: batch} for _ in states(example[1]))
    shapes = {"x": {0: steps, 1: batch}, "hx": given if len(given) > 1 else given[0]}
    with torch.no_grad():
        return torch.export.export(rnnjit.compile(model), example, dynamic_shapes=shapes)


@pytest.mark.filterwarnings("ignore:The given buffer is not writable")  # by torch.export.load
@pytest.mark.parametrize("kind", KINDS)
def test_export_with_dynamic_sizes(kind, tmp_path):
    model = Tagger(KINDS[kind])
    program = exported(model, inputs(model))
    names = [str(node.target) for node in program.graph.nodes]
    assert sum("rnnjit.layer" in name for name in names) == 2
    torch.export.save(program, tmp_path / "model.pt2")
    loaded = torch.export.load(tmp_path / "model.pt2").module()
    for steps, batch in ((9, 2), (2, 7)):
        given = inputs(model, steps, batch)
        torch.testing.assert_close(loaded(*given), model(*given), **CLOSE)


@pytest.mark.full
@inductor
@pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning")
@pytest.mark.parametrize("kind", ["LSTM", "projected", "GRU"])
def test_a_package_compiled_ahead_of_time(kind, tmp_path):
    model, path = Tagger(KINDS[kind]), str(tmp_path / "model.pt2")
    program = exported(model, inputs(model))
    with torch.no_grad():
        torch._inductor.aoti_compile_and_package(program, package_path=path)
        package = torch._inductor.aoti_load_package(path)
        for steps, batch in ((5, 3), (9, 2)):
            given = inputs(model, steps, batch)
            torch.testing.assert_close(tuple(package(*given)), model(*given), **CLOSE)


@pytest.mark.filterwarnings("ignore:TF32 acceleration")  # flags() of oneDNN sets this, too
@pytest.mark.usefixtures("onednn_where_it_runs")
@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize("kind", ["LSTM", "projected", "GRU"])
@pytest.mark.parametrize("traced", [False, True])
def test_autocast(kind, traced):
    """In a graph torch's own layer runs, else a backend; in the types that autocast chooses for it.

    Without gradients: torch itself fails to trace its nn.LSTM under autocast with them.
    """
    torch.manual_seed(0)
    rnn = KINDS[kind](I, H, 2)
    fast = rnnjit.compile(rnn)
    run = torch.compile(fast, backend="aot_eager", fullgraph=True) if traced else fast
    x, hx = torch.randn(T, B, I), initial(rnn, B)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        got, expected = run(x, hx), rnn(x, hx)
    near = {} if traced else {"rtol": 0.02, "atol": 0.02}
    torch.testing.assert_close(got, expected, **near)  # and of the same dtypes

"""Protects resets in graphs: one graph for any mask, with the values of sequences cut by hand."""

import shutil

import pytest
import torch
from cut_by_hand import cut_by_hand
from eager_pair import CLOSE, H, I, weigh
from layer_kinds import KINDS, as_hx, initial, kinds_on_few, state_widths, states
from torch import nn

import rnnjit

# Dynamo and Inductor warn of torch's own deprecations when they are first imported.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.:DeprecationWarning")
# No two of the first sizes are equal, nor are they those of the layer: torch would take them for
# one. The share of resets of each.
SHAPES = ((7, 3), 0.4), ((9, 8), 0.0), ((6, 2), 1.0), ((13, 6), 0.3)
#: Whether there is hx, and what resets lead to.
WAYS = {
    "zeros": (False, None),
    "hx": (True, None),
    "vector": (False, "vector"),
    "hx-steps": (True, "steps"),
}


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()


class Tagger(nn.Module):
    def __init__(self, make, **config):
        super().__init__()
        torch.manual_seed(0)
        self.rnn = make(I, H, 2, bidirectional=True, dtype=torch.float64, **config)

    def forward(self, x, hx, reset, reset_to, **options):
        found = self.rnn(torch.sin(x), hx, reset=reset, reset_to=reset_to, **options)
        y, last, *others = found
        return y * 2, last, *others


def inputs(rnn, shape, share, way):
    """x, hx, the mask, and `reset_to`, time-major."""
    given, to = WAYS[way]
    generator = torch.Generator().manual_seed(shape[0])
    x = torch.randn(*shape, I, dtype=torch.float64, generator=generator, requires_grad=True)
    reset = torch.rand(shape, generator=generator) < share
    steps = shape if to == "steps" else ()
    starts = [
        torch.randn(2, *steps, 2 * columns, dtype=torch.float64, generator=generator)
        for columns in state_widths(rnn)
    ]
    hx = initial(rnn, shape[1]) if given else None
    return x, hx, reset, as_hx(starts) if to else None


def expected(rnn, x, hx, reset, to):
    (T, B, _), zeros = x.shape, states(initial(rnn, x.shape[1]))
    zeros = [torch.zeros_like(state) for state in zeros]
    wide = [torch.zeros(2, T, B, 2 * s, dtype=x.dtype) for s in state_widths(rnn)]
    if to is not None:
        wide = [s if s.dim() == 4 else s[:, None, None].expand(2, T, B, -1) for s in states(to)]
    y, *last = cut_by_hand(rnn, torch.sin(x), zeros if hx is None else states(hx), reset, wide)
    return y * 2, tuple(last)


def assert_trains_alike(traced, model, x, hx, reset, to):
    leaves = [x, *(states(hx) if hx is not None else ()), *(states(to) if to is not None else ())]
    leaves = [leaf.requires_grad_() for leaf in leaves] + list(model.parameters())
    y, last = traced(x, hx, reset, to)
    found = y, states(last)
    wanted = expected(model.rnn, x, hx, reset, to)
    torch.testing.assert_close(found, wanted, **CLOSE)
    results = [
        torch.autograd.grad(weigh(*result), leaves, materialize_grads=True)
        for result in (found, wanted)
    ]
    torch.testing.assert_close(*results, **CLOSE)


@pytest.mark.parametrize("kind", kinds_on_few(*WAYS))
def test_one_graph_for_any_mask(kind):
    make, backend, way = kind
    model = Tagger(make)
    fast = rnnjit.compile(model, backend=backend)
    traced = torch.compile(fast, backend="aot_eager", fullgraph=True, dynamic=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for shape, share in SHAPES:
            assert_trains_alike(traced, model, *inputs(model.rnn, shape, share, way))


@pytest.mark.full
@pytest.mark.skipif(shutil.which("g++") is None, reason="Inductor needs a C++ compiler")
def test_inductor():
    model = Tagger(KINDS["projected"])
    traced = torch.compile(rnnjit.compile(model), fullgraph=True, dynamic=True)
    assert_trains_alike(traced, model, *inputs(model.rnn, *SHAPES[0], "hx-steps"))


@pytest.mark.parametrize("way", WAYS)
def test_all_states(way):
    model = Tagger(nn.LSTM)
    fast = rnnjit.compile(model)
    traced = torch.compile(fast, backend="eager", fullgraph=True)
    x, hx, reset, to = inputs(model.rnn, *SHAPES[0], way)
    leaves, results = [x, *model.parameters()], []
    for module in (fast, traced):
        y, last, layers = module(x, hx, reset, to, return_states=True)
        every = [state for layer in layers for state in layer]
        loss = weigh(y, last) + sum((state * state.cos()).sum() for state in every)
        results.append((y, last, every, torch.autograd.grad(loss, leaves)))
    torch.testing.assert_close(results[1], results[0], **CLOSE)
    # Only the cell state of the last layer: with AOTAutograd the other results would get zeros.
    c = traced(x, hx, reset, to, return_states=True)[2][1][1]
    again = fast(x, hx, reset, to, return_states=True)[2][1][1]
    found = [torch.autograd.grad(state.sum(), leaves) for state in (c, again)]
    torch.testing.assert_close(*found, **CLOSE)


def test_all_states_of_dense_input():
    model = Tagger(nn.LSTM)
    fast = rnnjit.compile(model)
    traced = torch.compile(fast, backend="aot_eager", fullgraph=True, dynamic=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for shape, _ in SHAPES[:2]:
            x, results = torch.randn(*shape, I, dtype=torch.float64, requires_grad=True), []
            for module in (fast, traced):
                y, last, layers = module(x, None, None, None, return_states=True)
                every = [state for layer in layers for state in layer]
                loss = weigh(y, last) + sum((state * state.cos()).sum() for state in every)
                grads = torch.autograd.grad(loss, [x, *model.parameters()])
                results.append((y, last, every, grads))
            torch.testing.assert_close(results[1], results[0], **CLOSE)


@pytest.mark.parametrize("form", ["batch_first", "unbatched"])
def test_other_forms_of_the_input(form):
    model = Tagger(nn.GRU, batch_first=form == "batch_first")
    fast = rnnjit.compile(model)
    traced = torch.compile(fast, backend="aot_eager", fullgraph=True)
    x, hx, reset, to = inputs(model.rnn, *SHAPES[0], "hx-steps")
    x = x.detach()
    if form == "batch_first":
        given = x.transpose(0, 1), hx, reset.t(), to.transpose(1, 2)
    else:
        given = x[:, 0], hx[:, 0], reset[:, 0], to[:, :, 0]
    y, last = traced(*given)
    wanted, (ends,) = expected(Tagger(nn.GRU).rnn, x, hx, reset, to)
    wanted, ends = (
        (wanted.transpose(0, 1), ends) if form == "batch_first" else (wanted[:, 0], ends[:, 0])
    )
    torch.testing.assert_close((y, last), (wanted, ends), **CLOSE)


def test_dropout_acts_between_layers_alone():
    model = Tagger(nn.GRU, dropout=1.0)
    fast = rnnjit.compile(model)
    traced = torch.compile(fast, backend="aot_eager", fullgraph=True)
    given = inputs(model.rnn, *SHAPES[0], "zeros")
    torch.testing.assert_close(traced(*given), fast(*given), **CLOSE)

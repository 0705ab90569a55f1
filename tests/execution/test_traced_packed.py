"""Protects packed input in graphs: one graph for any lengths, with eager's values and gradients."""

import shutil

import pytest
import torch
from eager_pair import CLOSE, H, I, weigh
from layer_kinds import initial, kinds_on_few, states
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import rnnjit

# Dynamo and Inductor warn of torch's own deprecations when they are first imported.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.:DeprecationWarning")
# torch takes sizes that are equal in the first call for one, and 1 for a constant: T, B and N of
# the first batch are no others.
LENGTHS = [9, 3, 7], [4, 11], [5, 5, 5, 5], [1, 8, 1, 1, 2, 3]
#: Whether the sequences came sorted, and whether there is hx.
WAYS = "sorted-zeros", "unsorted-zeros", "sorted-hx", "unsorted-hx"


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()


class Tagger(nn.Module):
    """Takes and gives packed sequences, between other operations."""

    def __init__(self, make, **config):
        super().__init__()
        torch.manual_seed(0)
        self.rnn = make(I, H, 2, bidirectional=True, dtype=torch.float64, **config)

    def forward(self, packed, hx=None, **options):
        changed = packed._replace(data=torch.sin(packed.data))
        y, last, *others = self.rnn(changed, hx, **options)
        return y, [2 * state for state in states(last)], *others


def packed_of(lengths, order="unsorted"):
    generator = torch.Generator().manual_seed(len(lengths))
    x = torch.randn(max(lengths), len(lengths), I, dtype=torch.float64, generator=generator)
    if order == "sorted":
        lengths = sorted(lengths, reverse=True)
    return pack_padded_sequence(x, lengths, enforce_sorted=order == "sorted")


def assert_trains_alike(traced, eager, packed, hx=None):
    leaves = (packed.data, *(states(hx) if hx is not None else ()), *eager.parameters())
    for leaf in leaves:
        leaf.requires_grad_()
    results = []
    for module in (eager, traced):
        y, last = module(packed, hx)
        assert isinstance(y, PackedSequence)
        for got, given in zip(y[1:], packed[1:], strict=True):
            assert got is given or torch.equal(got, given)
        grads = torch.autograd.grad(weigh(y, tuple(last)), leaves)
        results.append((y.data, last, grads))
    torch.testing.assert_close(results[1], results[0], **CLOSE)


@pytest.mark.parametrize("kind", kinds_on_few(*WAYS))
def test_one_graph_for_any_lengths(kind):
    make, backend, way = kind
    order, given = way.split("-")
    model = Tagger(make)
    fast = rnnjit.compile(model, backend=backend)
    traced = torch.compile(fast, backend="aot_eager", fullgraph=True, dynamic=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for lengths in LENGTHS:
            hx = initial(model.rnn, len(lengths)) if given == "hx" else None
            assert_trains_alike(traced, model, packed_of(lengths, order), hx)


def test_sizes_that_vary_are_found_to():
    model = Tagger(nn.GRU)
    traced = torch.compile(rnnjit.compile(model), backend="eager", fullgraph=True)
    for lengths in LENGTHS[:2]:
        assert_trains_alike(traced, model, packed_of(lengths))
    with torch._dynamo.config.patch(error_on_recompile=True):
        for lengths in LENGTHS[2:]:
            assert_trains_alike(traced, model, packed_of(lengths))


def test_all_states():
    model = Tagger(nn.LSTM)
    fast = rnnjit.compile(model)
    traced = torch.compile(fast, backend="aot_eager", fullgraph=True, dynamic=True)
    for lengths in LENGTHS[:2]:
        packed, results = packed_of(lengths), []
        for module in (fast, traced):
            y, last, layers = module(packed, return_states=True)
            every = [state.data for layer in layers for state in layer]
            loss = weigh(y, tuple(last)) + sum((state * state.cos()).sum() for state in every)
            grads = torch.autograd.grad(loss, tuple(model.parameters()))
            results.append((y.data, last, every, grads))
            assert all(isinstance(state, PackedSequence) for layer in layers for state in layer)
            torch.testing.assert_close(y.data, every[2], rtol=0, atol=0)
        torch.testing.assert_close(results[1], results[0], **CLOSE)


@pytest.mark.skipif(shutil.which("g++") is None, reason="Inductor needs a C++ compiler")
@pytest.mark.parametrize("order", ["sorted", pytest.param("unsorted", marks=pytest.mark.full)])
def test_inductor(order):
    model = Tagger(nn.LSTM)
    traced = torch.compile(rnnjit.compile(model), fullgraph=True, dynamic=True)
    for lengths in LENGTHS[:2]:
        assert_trains_alike(traced, model, packed_of(lengths, order))


# Dynamo itself looks at .grad where it goes on behind a break of the graph.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_packing_in_the_model_breaks_the_graph_only_there():
    class Model(nn.Module):
        def __init__(self, make):
            super().__init__()
            self.tagger = Tagger(make)

        def forward(self, x, lengths):
            packed = pack_padded_sequence(x * 2, lengths)
            y, last = self.tagger(packed)
            return pad_packed_sequence(y)[0] + 1, last

    model, graphs = Model(nn.GRU), []

    def keep(graph, _):
        graphs.append(graph)
        return graph

    traced = torch.compile(rnnjit.compile(model), backend=keep)
    for lengths in ([4, 2, 1], [6, 6, 2, 2]):
        x = torch.randn(max(lengths), len(lengths), I, dtype=torch.float64)
        torch.testing.assert_close(
            traced(x, torch.tensor(lengths)), model(x, torch.tensor(lengths)), **CLOSE
        )
    nodes = [[str(node.target) for node in graph.graph.nodes] for graph in graphs]
    assert max(sum("rnnjit.layer" in name for name in names) for names in nodes) == 2

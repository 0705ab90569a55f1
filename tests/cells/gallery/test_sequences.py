"""Protects whole sequences of the gallery's cells, uncompiled and compiled, against loops by hand.

Values and all gradients, in float64: dense and packed, both directions, resets, one step, no row.
"""

from dataclasses import dataclass

import pytest
import torch
from covered import covered, in_full
from gallery_cells import DOUBLE, GALLERY
from gallery_loops import by_hand, drawn
from torch.nn.utils.rnn import PackedSequence

import rnnjit

I, H = 3, 5
CLOSE = {"rtol": 1e-10, "atol": 1e-11}


@dataclass(frozen=True)
class Kind:
    """A kind of call: the rows of each step, whether it is packed, where states are new."""

    sizes: tuple[int, ...]
    packed: bool = False
    resets: bool = False
    starts: bool = False

    @property
    def reset(self):
        """`[T, B]`, or None."""
        if not self.resets:
            return None
        T, B = len(self.sizes), self.sizes[0]
        marks = torch.arange(T * B).view(T, B) * 7 % 5
        return marks == 3


KINDS = {
    "dense": Kind((3,) * 6),
    "packed": Kind((4, 4, 3, 2, 2, 1), packed=True),
    "resets": Kind((3,) * 6, resets=True),
    "resets-to": Kind((2,) * 5, resets=True, starts=True),
    "one-step": Kind((2,)),
    "one-sequence": Kind((1,) * 5),
    "no-sequence": Kind((0,) * 3),
}
#: Of each form that a cell can have, one that `make test` compiles: each takes seconds.
KEPT = ("leaky-noise", "lif-arctan", "lstm-again")
#: The cells that further backends compile, in `make test-all`.
FURTHER = {"tvm": ("leaky-noise", "peephole", "indrnn", "lif-triangle"), "inductor": ("leaky",)}


def weights_of(rnn, cell, directions):
    """The parameters and buffers of each direction by the names that they have in the cell."""
    tensors = {**dict(rnn.named_parameters()), **dict(rnn.named_buffers())}
    names = [*dict(cell.named_parameters()), *dict(cell.named_buffers())]
    suffixes = ("_l0", "_l0_reverse")[:directions]
    return [{name: tensors[name + suffix] for name in names} for suffix in suffixes]


def compiled(rnn, way):
    """The module as it is, or compiled for a backend."""
    return rnn if way == "uncompiled" else rnnjit.compile(rnn, backend=way)


def outcome(run, inputs, **options):
    """The output and the states, and the gradients of all inputs through them."""
    y, states = run()
    results = [y, *states]
    loss = sum((result.sin() * result).sum() for result in results)
    return results, torch.autograd.grad(loss, inputs, **options)


@pytest.mark.parametrize(
    ("name", "way", "kind", "directions"),
    [
        *covered(list(GALLERY), ("uncompiled",), list(KINDS), (1, 2)),
        *covered(KEPT, ("numba", "eager"), list(KINDS), (1, 2)),
        *in_full([name for name in GALLERY if name not in KEPT], ("numba",), list(KINDS), (1, 2)),
        *(case for way, names in FURTHER.items() for case in in_full(names, (way,), KINDS, (1, 2))),
    ],
)
def test_values_and_gradients(name, way, kind, directions):
    entry, kind = GALLERY[name], KINDS[kind]
    T, B, N = len(kind.sizes), kind.sizes[0], sum(kind.sizes)
    torch.manual_seed(1)
    cell = entry.new(I, H)
    rnn = rnnjit.Recurrent(cell, bidirectional=directions == 2)
    weights = weights_of(rnn, cell, directions)
    x = torch.randn(N, I, **DOUBLE, requires_grad=True)
    hx = [torch.randn(directions, B, H, **DOUBLE, requires_grad=True) for _ in cell.states]
    starts = [torch.randn(1, directions * H, **DOUBLE, requires_grad=True) for _ in cell.states]
    starts = starts if kind.starts else []
    inputs = [x, *hx, *starts, *rnn.parameters()]
    module = compiled(rnn, way)

    def run():
        rows = PackedSequence(x, torch.tensor(kind.sizes)) if kind.packed else x.view(T, B, I)
        options = {} if kind.reset is None else {"reset": kind.reset}
        if starts:
            options["reset_to"] = tuple(starts) if len(starts) > 1 else starts[0]
        y, h_n = module(rows, tuple(hx) if len(hx) > 1 else hx[0], **options)
        y = y.data if kind.packed else y.reshape(N, directions * H)
        return y, h_n if len(hx) > 1 else (h_n,)

    def hand():
        noise = drawn(entry, directions, kind.sizes, H)
        to = [start.view(directions, H) for start in starts] or None
        return by_hand(entry, weights, kind.sizes, x, hx, noise, kind.reset, to)

    torch.manual_seed(2)
    found = outcome(run, inputs)
    torch.manual_seed(2)
    # Where there is no sequence, the loop by hand uses no input, and the gradients are zeros.
    expected = outcome(hand, inputs, materialize_grads=True)
    for values, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(list(values), list(wanted), **CLOSE)


@pytest.mark.parametrize("way", ["uncompiled", "numba"])
@pytest.mark.parametrize("name", ["leaky-noise", "lstm-again"])
def test_layers_on_top_of_each_other(name, way):
    entry, sizes = GALLERY[name], (3,) * 4
    torch.manual_seed(1)
    cell = entry.new(I, H)
    rnn = rnnjit.Recurrent(cell, num_layers=2)
    x = torch.randn(4, 3, I, **DOUBLE)
    torch.manual_seed(2)
    y, h_n = compiled(rnn, way)(x)
    torch.manual_seed(2)
    tensors, rows = dict(rnn.named_parameters()), x.view(12, I)
    ends = []
    for layer in range(2):
        weights = [{n: tensors[f"{n}_l{layer}"] for n in dict(cell.named_parameters())}]
        zeros = [torch.zeros(1, 3, H, **DOUBLE) for _ in cell.states]
        rows, last = by_hand(entry, weights, sizes, rows, zeros, drawn(entry, 1, sizes, H))
        ends.append(last)
    torch.testing.assert_close(y.view(12, H), rows, **CLOSE)
    found = h_n if isinstance(h_n, tuple) else (h_n,)
    for value, wanted in zip(found, zip(*ends, strict=True), strict=True):
        torch.testing.assert_close(value, torch.cat(wanted), **CLOSE)

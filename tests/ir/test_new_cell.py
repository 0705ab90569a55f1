"""Protects adding a cell of known operations by its definition alone: this file has all of two.

They are compared with loops written by hand, in float64, in every way of computing them.
"""

from itertools import accumulate

import pytest
import torch

from rnnjit import RNNSpec, Rows
from rnnjit.execution.stack import run_stack
from rnnjit.ir import CellSpec
from rnnjit.ir.builder import sigmoid, tanh
from rnnjit.reference import ReferenceBackend
from rnnjit_inductor import InductorBackend
from rnnjit_inductor.plan import MATRIX, ROWS, Plan

I, H = 3, 5
CLOSE = {"rtol": 1e-11, "atol": 1e-12}


def ugrnn(zx, zh, h):
    """The update gate RNN: Collins et al., Capacity and Trainability in RNNs, 2017."""
    c, g = tanh(zx[0] + zh[0]), sigmoid(zx[1] + zh[1])
    h = g * h + (1 - g) * c
    return h, h


def mgu(zx, zh, h):
    """The minimal gated unit (Zhou et al., 2016) without its gate on the state inside of tanh."""
    f, n = sigmoid(zx[0] + zh[0]), tanh(zx[1] + zh[1])
    h = (1 - f) * h + f * n
    return h, h


UGRNN = CellSpec.trace(ugrnn, name="ugrnn", gates=["c", "g"], states=["h"])
MGU = CellSpec.trace(mgu, name="mgu", gates=["f", "n"], states=["h"])


def ugrnn_by_hand(z, h):
    share = 1 / (1 + (-z[H:]).exp())
    return share * h + (1 - share) * z[:H].tanh()


def mgu_by_hand(z, h):
    forget = 1 / (1 + (-z[:H]).exp())
    return h + forget * (z[H:].tanh() - h)


CELLS = {"ugrnn": (UGRNN, ugrnn_by_hand), "mgu": (MGU, mgu_by_hand)}
SIZES = {
    "dense": [4] * 8,
    "one-sequence": [1] * 8,
    "shorter-than-a-chunk": [3] * 2,
    "packed": [5, 5, 4, 3, 3, 2, 1, 1],
    "packed-one-step": [2],
}


def chunks(tile):
    """The backend with chunks of three steps, so that eight are two chunks and two steps more."""

    def planned(layer, rows, dtype, device, threads, keep):
        return Plan(3, tile, 1) if rows.T >= 3 else None

    return InductorBackend(planned)


BACKENDS = {
    "reference": ReferenceBackend(),
    "inductor-steps": InductorBackend(lambda *call: None),
    "inductor-rows": chunks(ROWS),
    "inductor-matrix": chunks(MATRIX),
}
SLOW = ("inductor-matrix", "inductor-rows")


def by_hand(step, sizes, x, h0, weights):
    """The outputs `[N, D*H]` and h_n `[D, B, H]`, one sequence after the other."""
    starts, states, ends = list(accumulate(sizes, initial=0)), {}, []
    for d in range(len(h0)):
        w_ih, w_hh, *biases = weights[d * len(weights) // len(h0) :][: len(weights) // len(h0)]
        for b in range(sizes[0]):
            h = h0[d, b]
            steps = [t for t, size in enumerate(sizes) if size > b]
            for t in reversed(steps) if d else steps:
                row = starts[t] + b
                h = states[d, row] = step(sum(biases, w_ih @ x[row] + w_hh @ h), h)
            ends.append(h)
    y = [torch.cat([states[d, row] for d in range(len(h0))]) for row in range(sum(sizes))]
    return torch.stack(y), torch.stack(ends).view_as(h0)


def results(run, x, h0, weights, of):
    """The outputs and h_n, and the gradients of all inputs through some of both."""
    inputs = [tensor.clone().requires_grad_() for tensor in (x, h0, *weights)]
    y, h_n = run(inputs[0], inputs[1], inputs[2:])
    shares = {"y": (y.sin() * y).sum(), "h_n": (h_n * h_n.exp()).sum()}
    return [y, h_n, *torch.autograd.grad(sum(shares[name] for name in of), inputs)]


@pytest.mark.parametrize(
    ("name", "way"),
    # To compile a cell in one form of the product takes seconds.
    [("ugrnn", way) for way in BACKENDS if way not in SLOW]
    + [pytest.param("ugrnn", way, marks=pytest.mark.full) for way in SLOW]
    + [("mgu", way) for way in ("reference", "inductor-steps")]
    + [pytest.param("mgu", "inductor-rows", marks=pytest.mark.full)],
)
@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_forward_and_all_gradients(name, way, sizes, directions):
    (cell, step), backend = CELLS[name], BACKENDS[way]
    assert not backend.why_not_cell(cell)
    spec = RNNSpec(I, H, cell=cell, bidirectional=directions == 2)
    packed = torch.tensor(sizes) if len(set(sizes)) > 1 else None
    rows = Rows(len(sizes), sizes[0], sum(sizes), packed)
    torch.manual_seed(0)
    x = torch.randn(rows.N, I, dtype=torch.float64)
    h0 = torch.randn(directions, rows.B, H, dtype=torch.float64)
    weights = [torch.randn(shape, dtype=torch.float64) / 2 for shape in spec.weight_shapes]

    def run(x, h0, weights):
        y, (h_n,) = run_stack(backend, spec, rows, x, (h0,), weights, False, True)
        return y, h_n

    for of in (["y", "h_n"], ["y"], ["h_n"]):
        expected = results(lambda *given: by_hand(step, sizes, *given), x, h0, weights, of)
        for found, wanted in zip(results(run, x, h0, weights, of), expected, strict=True):
            torch.testing.assert_close(found, wanted, **CLOSE)

    y, h_n = run_stack(backend, spec, rows, x, (h0,), weights, False, False)
    torch.testing.assert_close((y, *h_n), by_hand(step, sizes, x, h0, weights), **CLOSE)


@pytest.mark.parametrize("bias", [True, False])
def test_stacked_and_without_biases(bias):
    spec = RNNSpec(I, H, num_layers=2, cell=MGU, bias=bias)
    rows = Rows(4, 3, 12)
    torch.manual_seed(0)
    x, h0 = torch.randn(12, I).double(), torch.randn(2, 3, H).double()
    weights = [torch.randn(shape).double() / 2 for shape in spec.weight_shapes]
    half = len(spec.layer(0).weight_shapes)

    def layers(x, h0, weights):
        y, first = by_hand(mgu_by_hand, [3] * 4, x, h0[:1], weights[:half])
        y, last = by_hand(mgu_by_hand, [3] * 4, y, h0[1:], weights[half:])
        return y, torch.cat([first, last])

    def run(x, h0, weights):
        backend = BACKENDS["inductor-steps"]
        y, (h_n,) = run_stack(backend, spec, rows, x, (h0,), weights, False, True)
        return y, h_n

    expected = results(layers, x, h0, weights, ["y", "h_n"])
    for found, wanted in zip(results(run, x, h0, weights, ["y", "h_n"]), expected, strict=True):
        torch.testing.assert_close(found, wanted, **CLOSE)

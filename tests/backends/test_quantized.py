"""Protects layers of int8 matrices on every backend that declares them, against the contract.

The integers of a single step are the same everywhere, so results differ by float32's rounding. In
later steps a state a hair apart may round to the next integer.
"""

from dataclasses import replace

import pytest
import torch

import rnnjit
from rnnjit.ir import GRU, LSTM, RNN_RELU, RNN_TANH
from rnnjit.quantization import quantize_matrix
from rnnjit.reference import BACKEND as EAGER
from rnnjit.reference import layer_forward
from rnnjit.spec import LayerSpec, Rows

BACKENDS = [b for b in rnnjit.backends().values() if b.quantized and not b.missing()]
SIZES = torch.tensor([5, 4, 4, 2, 1])
CASES = {
    "step": (LayerSpec(RNN_TANH, 37, 21, 1, True), Rows(1, 17, 17)),
    "step of no bias": (LayerSpec(GRU, 64, 33, 1, False), Rows(1, 1, 1)),
    "step of two directions": (LayerSpec(LSTM, 3, 16, 2, True, 5), Rows(1, 9, 9)),
    "one of each": (LayerSpec(RNN_RELU, 1, 1, 1, True), Rows(1, 1, 1)),
    "dense": (LayerSpec(LSTM, 70, 40, 1, True), Rows(6, 4, 24)),
    "packed": (LayerSpec(GRU, 9, 20, 2, True), Rows(5, 5, 16, SIZES)),
    "projected": (LayerSpec(LSTM, 9, 20, 2, False, 6), Rows(5, 5, 16, SIZES)),
}


def drawn(layer, rows):
    """x, hx and the weights of a quantized layer."""
    torch.manual_seed(0)
    weights, states = [], []
    for _ in range(layer.num_directions):
        given = [torch.randn(shape) / shape[-1] ** 0.5 for shape in layer.weight_shapes]
        q = [quantize_matrix(each) for each in given if each.dim() == 2]
        values = iter(q)
        weights += [next(values).values if each.dim() == 2 else each for each in given]
        weights += [each.scale for each in q] + [each.sums for each in q]
    for size in layer.state_sizes:
        states.append(torch.randn(layer.num_directions, rows.B, size))
    return torch.randn(rows.N, layer.features), tuple(states), weights


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("backend", [*BACKENDS, EAGER], ids=lambda backend: backend.name)
def test_a_layer_follows_the_contract(backend, name):
    layer, rows = CASES[name]
    x, hx, weights = drawn(layer, rows)
    layer = replace(layer, quantized=True)
    y, h_n, *_ = backend.forward(layer, rows, x, hx, weights, False)
    double = [w.double() if w.dtype is torch.float32 and w.dim() == 1 else w for w in weights]
    exact = layer_forward(layer, rows, x.double(), tuple(s.double() for s in hx), double)
    bound = 2e-5 if rows.T == 1 and not layer.proj_size else 2e-2
    for found, expected in zip((y, *h_n), (exact[0], *exact[1]), strict=True):
        assert found.dtype is torch.float32
        assert (found - expected).abs().max() < bound


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("backend", [*BACKENDS, EAGER], ids=lambda backend: backend.name)
def test_a_row_that_is_not_finite_spoils_its_own_sequence_alone(backend, bad):
    layer, rows = LayerSpec(LSTM, 9, 20, 1, True), Rows(3, 4, 12)
    x, hx, weights = drawn(layer, rows)
    layer, clean = replace(layer, quantized=True), x.clone()
    x[5, 2] = bad  # step 1, sequence 1
    y = backend.forward(layer, rows, x, hx, weights, False).y.view(3, 4, 20)
    expected = backend.forward(layer, rows, clean, hx, weights, False).y.view(3, 4, 20)
    assert y[1:, 1].isnan().all()
    kept = [0, 2, 3]
    assert torch.equal(y[:, kept], expected[:, kept])
    assert torch.equal(y[0], expected[0])

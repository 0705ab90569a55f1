"""Protects int8 products: quantized rows and matrices, by integer arithmetic in NumPy."""

import numpy as np
import pytest
import torch

from rnnjit.ir import GRU, LSTM, RNN_TANH
from rnnjit.quantization import product, quantize_matrix, quantize_rows
from rnnjit.reference import BACKEND as EAGER
from rnnjit.spec import LayerSpec, Rows


def by_hand(x, w, bias=None):
    """The contract, one number after another: float32 scales, int64 sums."""
    x, w = (np.asarray(each, dtype=np.float32) for each in (x, w))
    found = np.zeros((len(x), len(w)))
    for i, row in enumerate(x):
        m = np.abs(row).max()
        a = np.rint(row * (np.float32(127) / m)).astype(np.int64) if m else np.zeros(len(row), int)
        for j, column in enumerate(w):
            scale = np.float32(np.abs(column).max() / np.float32(127)) or np.float32(1)
            q = np.rint(column.astype(np.float64) / scale).astype(np.int64)
            found[i, j] = float(a @ q) * float(m / np.float32(127)) * float(scale)
    return found if bias is None else found + np.asarray(bias, dtype=np.float64)


def test_a_product_is_that_of_the_integers():
    torch.manual_seed(0)
    x, w, bias = torch.randn(5, 70), torch.randn(9, 70), torch.randn(9)
    x[2], w[3] = 0, 0
    x[1] *= 1e6
    q = quantize_matrix(w)
    assert torch.equal(q.sums, q.values.to(torch.int64).sum(1).to(torch.int32))
    assert q.values.dtype is torch.int8
    assert q.scale[3] == 1
    assert not q.values[3].any()
    found, expected = product(x, q.values, q.scale, bias), by_hand(x, w, bias)
    size = np.abs(expected).max(1, keepdims=True)
    assert (np.abs(found.numpy() - expected) <= 1e-6 * size).all()
    assert torch.equal(found[2], bias)


@pytest.mark.parametrize("columns", [1032, 1033, 4000])
def test_sums_of_the_largest_numbers_are_exact(columns):
    values = torch.full((1, columns), 127, dtype=torch.int8)
    x = torch.ones(1, columns)
    x[0, 0] = -1  # an odd sum, which float32 holds up to 2^24
    found = product(x.double(), values, torch.ones(1))
    assert found.item() == pytest.approx(127 * (columns - 2), rel=1e-15)


def test_rounding_is_to_even_and_symmetric():
    x = torch.tensor([[127.0, 0.5, 1.5, -0.5, -2.5, -126.6]])
    values, scale = quantize_rows(x)
    assert values.tolist() == [[127, 0, 2, 0, -2, -127]]
    assert scale.tolist() == [1]
    assert quantize_matrix(x).values.tolist() == values.tolist()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_row_that_is_not_finite_has_no_products(bad):
    x = torch.tensor([[1.0, 2.0], [bad, 1.0]])
    q = quantize_matrix(torch.tensor([[1.0, 3.0], [0.0, 0.0]]))
    found = product(x, q.values, q.scale)
    assert found[1].isnan().all()
    assert found[0].isfinite().all()
    with pytest.raises(ValueError, match="finite"):
        quantize_matrix(x)


def test_rows_too_small_to_divide_by_are_zeros():
    values, scale = quantize_rows(torch.tensor([[1e-38, -1e-44, 0.0]]))
    assert not values.any()
    assert not scale.any()


@pytest.mark.parametrize("cell", [RNN_TANH, LSTM, GRU], ids=lambda cell: cell.name)
def test_a_step_follows_the_definition(cell):
    """One step from states by `by_hand`, and the cell's equations in float64."""
    torch.manual_seed(1)
    G, H, B = len(cell.gates), 5, 3
    w_ih, w_hh, w_hr = torch.randn(G * H, 7), torch.randn(G * H, H), torch.randn(2, H)
    P = 2 if cell is LSTM else 0
    w_hh = w_hh[:, : P or H]
    b_ih, b_hh = torch.randn(2, G * H)
    layer = LayerSpec(cell, 7, H, 1, True, P, True)
    x, h, c = torch.randn(B, 7), torch.randn(B, P or H), torch.randn(B, H)
    matrices = [quantize_matrix(w) for w in (w_ih, w_hh, *([w_hr] if P else []))]
    weights = [matrices[0].values, matrices[1].values, b_ih, b_hh]
    weights += [each.values for each in matrices[2:]]
    weights += [m.scale for m in matrices] + [m.sums for m in matrices]
    hx = (h[None], c[None]) if cell is LSTM else (h[None],)
    y = EAGER.forward(layer, Rows(1, B, B), x, hx, weights, False).y

    def sigmoid(z):
        return 1 / (1 + np.exp(-z))

    zx, zh = by_hand(x, w_ih, b_ih), by_hand(h, w_hh, b_hh)
    if cell is RNN_TANH:
        expected = np.tanh(zx + zh)
    elif cell is LSTM:
        i, f, g, o = np.split(zx + zh, 4, 1)
        out = sigmoid(o) * np.tanh(sigmoid(f) * c.numpy() + sigmoid(i) * np.tanh(g))
        expected = by_hand(out, w_hr)
    else:
        (rx, zzx, nx), (rh, zzh, nh) = np.split(zx, 3, 1), np.split(zh, 3, 1)
        n, z = np.tanh(nx + sigmoid(rx + rh) * nh), sigmoid(zzx + zzh)
        expected = n + z * (h.numpy() - n)
    assert np.abs(y.numpy() - expected).max() < 2e-6

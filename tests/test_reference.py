"""Protects the reference: plain torch, so that it works wherever torch does."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.func import grad, jvp, vmap

from rnnjit.ir import LSTM, RNN_TANH, CellSpec, builder
from rnnjit.reference import EagerBackend, ReferenceBackend, layer_forward, split_weights
from rnnjit.spec import LayerSpec, Problem, RNNSpec, Rows

LAYER = LayerSpec(RNN_TANH, 3, 4, 2, bias=True)
DENSE = Rows(5, 2, 10)
PACKED = Rows(3, 3, 6, torch.tensor([3, 2, 1]))


def leaky(zx, zh, h, tau):
    """A unit with a rate of its own, which is learnt."""
    h = h + tau * (builder.tanh(zx[0] + zh[0]) - h)
    return h, h


LEAKY = CellSpec.trace(leaky, name="leaky", gates=["z"], states=["h"], parameters=["tau"])


def tensors(layer, rows, dtype=torch.float64):
    torch.manual_seed(0)
    eager = nn.RNN(layer.input_size, layer.hidden_size, bidirectional=layer.num_directions == 2)
    x = torch.randn(rows.N, layer.input_size, dtype=dtype)
    h0 = torch.randn(layer.num_directions, rows.B, layer.hidden_size, dtype=dtype)
    return x, (h0,), [torch.randn(p.shape, dtype=dtype) / 2 for p in eager.parameters()]


def by_hand(layer, rows, x, hx, weights):
    """One sequence after the other, one step after the other, straight from the definition."""
    sizes = rows.sizes
    starts = [sum(sizes[:t]) for t in range(rows.T)]
    y = x.new_zeros(rows.N, layer.num_directions * layer.hidden_size)
    h_n = torch.zeros_like(hx[0])
    for d in range(layer.num_directions):
        w_ih, w_hh, b_ih, b_hh, *_ = split_weights(layer, weights, d)
        for b in range(rows.B):
            steps = [t for t in range(rows.T) if sizes[t] > b]
            h = hx[0][d, b]
            for t in steps[::-1] if d else steps:
                h = torch.tanh(w_ih @ x[starts[t] + b] + b_ih + w_hh @ h + b_hh)
                columns = slice(d * layer.hidden_size, (d + 1) * layer.hidden_size)
                y[starts[t] + b, columns] = h
            h_n[d, b] = h
    return y, (h_n,)


@pytest.mark.parametrize("rows", [DENSE, PACKED], ids=["dense", "packed"])
@pytest.mark.parametrize("backend", [ReferenceBackend(), EagerBackend()], ids=lambda b: b.name)
def test_follows_the_definition(backend, rows):
    inputs = tensors(LAYER, rows)
    y, h_n, *_ = backend.forward(LAYER, rows, *inputs, False)
    torch.testing.assert_close((y, h_n), by_hand(LAYER, rows, *inputs))


def test_split_weights_follows_the_flat_order():
    weights = list(range(10))
    assert split_weights(LAYER, weights, 0) == (0, 1, 2, 3, None, (), (), ())
    assert split_weights(LAYER, weights, 1) == (4, 5, 6, 7, None, (), (), ())
    assert split_weights(replace(LAYER, bias=False), weights[:4], 1) == (
        2,
        3,
        None,
        None,
        None,
        (),
        (),
        (),
    )
    projected = replace(LAYER, cell=LSTM, proj_size=2)
    assert split_weights(projected, weights, 1) == (5, 6, 7, 8, 9, (), (), ())
    learnt = replace(LAYER, cell=LEAKY, bias=False)
    assert split_weights(learnt, weights, 1) == (3, 4, None, None, None, (5,), (), ())
    quantized = replace(projected, bias=False, quantized=True)
    weights = list(range(18))
    assert split_weights(quantized, weights, 1) == (
        *(9, 10, None, None, 11, ()),
        *((12, 13, 14), (15, 16, 17)),
    )


def test_complex_numbers():
    inputs = tensors(LAYER, PACKED, torch.complex128)
    torch.testing.assert_close(
        layer_forward(LAYER, PACKED, *inputs), by_hand(LAYER, PACKED, *inputs)
    )


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # torch's own use
def test_forward_mode_agrees_with_finite_differences():
    x, hx, weights = tensors(LAYER, PACKED)

    def function(x):
        return layer_forward(LAYER, PACKED, x, hx, weights)[0]

    tangent = torch.randn_like(x)
    _, derivative = jvp(function, (x,), (tangent,))
    step = 1e-6 * tangent
    difference = (function(x + step) - function(x - step)) / 2e-6
    torch.testing.assert_close(derivative, difference, rtol=1e-6, atol=1e-8)


def test_vmap_gives_gradients_for_each_sample():
    x, hx, weights = tensors(LAYER, DENSE)

    def loss(weights, x):
        return layer_forward(LAYER, DENSE, x, hx, weights)[0].square().sum()

    samples = torch.stack([x, x + 1, -x])
    together = vmap(grad(loss), (None, 0))(weights, samples)
    for i, sample in enumerate(samples):
        alone = grad(loss)(weights, sample)
        torch.testing.assert_close([g[i] for g in together], alone)


@pytest.mark.parametrize("rows", [DENSE, PACKED], ids=["dense", "packed"])
def test_a_new_cell_is_a_value_and_needs_nothing_else(rows):
    layer = LayerSpec(LEAKY, 3, 4, 1, bias=False)
    x, hx, weights = tensors(layer, rows)
    w_ih, w_hh, tau = *weights[:2], torch.rand(4, dtype=torch.float64)
    weights = [w_ih, w_hh, tau]
    y, h_n = layer_forward(layer, rows, x, hx, weights)
    # Torch has no layer of it: both backends take it by its program.
    for backend in (ReferenceBackend(), EagerBackend()):
        output = backend.forward(layer, rows, x, hx, weights, False)
        torch.testing.assert_close((output.y, output.h_n), (y, h_n), rtol=0, atol=0)
    (before,) = hx[0]
    for step in y.split(rows.sizes):
        x_t, x = x[: len(step)], x[len(step) :]
        before = before[: len(step)]
        before = before + tau * (torch.tanh(x_t @ w_ih.T + before @ w_hh.T) - before)
        torch.testing.assert_close(step, before)
    torch.testing.assert_close(h_n[0][0, : len(step)], before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.complex64])
def test_eager_takes_the_dtypes_that_torch_takes(dtype):
    rnn = nn.RNN(3, 4, dtype=dtype)
    x = torch.randn(5, 2, 3).to(dtype)
    spec, problem = RNNSpec(3, 4), Problem(dtype, "cpu", 5, 2, 10, False, True)
    assert EagerBackend().why_not(spec, problem) == []
    hx = (x.new_zeros(1, 2, 4),)
    y, (h_n,), *_ = EagerBackend().forward(
        spec.layer(0), DENSE, x.flatten(0, 1), hx, list(rnn.parameters()), False
    )
    torch.testing.assert_close((y.view(5, 2, 4), h_n), rnn(x))

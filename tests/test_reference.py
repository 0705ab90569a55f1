"""The reference: plain torch, so that it works wherever torch does."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.func import grad, jvp, vmap

from rnnjit import cells
from rnnjit.backend import LayerOutput
from rnnjit.reference import EagerBackend, ReferenceBackend, layer_forward, split_weights
from rnnjit.spec import LayerSpec, Problem, RNNSpec, Rows

LAYER = LayerSpec("tanh", 3, 4, 2, bias=True)
DENSE = Rows(5, 2, 10)
PACKED = Rows(3, 3, 6, torch.tensor([3, 2, 1]))


def tensors(layer, rows, dtype=torch.float64):
    torch.manual_seed(0)
    eager = nn.RNN(layer.input_size, layer.hidden_size, bidirectional=layer.num_directions == 2)
    x = torch.randn(rows.N, layer.input_size, dtype=dtype)
    h0 = torch.randn(layer.num_directions, rows.B, layer.hidden_size, dtype=dtype)
    return x, h0, [torch.randn(p.shape, dtype=dtype) / 2 for p in eager.parameters()]


def by_hand(layer, rows, x, h0, weights):
    """One sequence after the other, one step after the other, straight from the definition."""
    sizes = rows.sizes
    starts = [sum(sizes[:t]) for t in range(rows.T)]
    y = x.new_zeros(rows.N, layer.num_directions * layer.hidden_size)
    h_n = torch.zeros_like(h0)
    for d in range(layer.num_directions):
        w_ih, w_hh, b_ih, b_hh = split_weights(layer, weights, d)
        for b in range(rows.B):
            steps = [t for t in range(rows.T) if sizes[t] > b]
            h = h0[d, b]
            for t in steps[::-1] if d else steps:
                h = torch.tanh(w_ih @ x[starts[t] + b] + b_ih + w_hh @ h + b_hh)
                columns = slice(d * layer.hidden_size, (d + 1) * layer.hidden_size)
                y[starts[t] + b, columns] = h
            h_n[d, b] = h
    return y, h_n


@pytest.mark.parametrize("rows", [DENSE, PACKED], ids=["dense", "packed"])
@pytest.mark.parametrize("backend", [ReferenceBackend(), EagerBackend()], ids=lambda b: b.name)
def test_follows_the_definition(backend, rows):
    inputs = tensors(LAYER, rows)
    y, h_n, _ = backend.forward(LAYER, rows, *inputs, False)
    torch.testing.assert_close((y, h_n), by_hand(LAYER, rows, *inputs))


def test_split_weights_follows_the_flat_order():
    weights = list(range(8))
    assert split_weights(LAYER, weights, 0) == [0, 1, 2, 3]
    assert split_weights(LAYER, weights, 1) == [4, 5, 6, 7]
    assert split_weights(replace(LAYER, bias=False), weights[:4], 1) == [2, 3]


def test_complex_numbers():
    inputs = tensors(LAYER, PACKED, torch.complex128)
    torch.testing.assert_close(
        layer_forward(LAYER, PACKED, *inputs), by_hand(LAYER, PACKED, *inputs)
    )


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # torch's own use
def test_forward_mode_agrees_with_finite_differences():
    x, h0, weights = tensors(LAYER, PACKED)

    def function(x):
        return layer_forward(LAYER, PACKED, x, h0, weights)[0]

    tangent = torch.randn_like(x)
    _, derivative = jvp(function, (x,), (tangent,))
    step = 1e-6 * tangent
    difference = (function(x + step) - function(x - step)) / 2e-6
    torch.testing.assert_close(derivative, difference, rtol=1e-6, atol=1e-8)


def test_vmap_gives_gradients_for_each_sample():
    x, h0, weights = tensors(LAYER, DENSE)

    def loss(weights, x):
        return layer_forward(LAYER, DENSE, x, h0, weights)[0].square().sum()

    samples = torch.stack([x, x + 1, -x])
    together = vmap(grad(loss), (None, 0))(weights, samples)
    for i, sample in enumerate(samples):
        alone = grad(loss)(weights, sample)
        torch.testing.assert_close([g[i] for g in together], alone)


def test_a_new_cell_needs_nothing_but_its_activation(monkeypatch):
    identity = cells.Cell("identity", lambda z: z)
    monkeypatch.setitem(cells.CELLS, "identity", identity)
    layer = LayerSpec("identity", 3, 4, 1, bias=False)
    rows = Rows(4, 2, 8)
    x, h0, weights = tensors(layer, rows)
    weights = weights[:2]
    expected = LayerOutput(*layer_forward(layer, rows, x, h0, weights))
    actual = EagerBackend().forward(layer, rows, x, h0, weights, False)
    torch.testing.assert_close(actual.y, expected.y)
    first = x[:2] @ weights[0].T + h0[0] @ weights[1].T
    torch.testing.assert_close(actual.y[:2], first)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.complex64])
def test_eager_takes_the_dtypes_that_torch_takes(dtype):
    rnn = nn.RNN(3, 4, dtype=dtype)
    x = torch.randn(5, 2, 3).to(dtype)
    spec, problem = RNNSpec(3, 4), Problem(dtype, "cpu", 5, 2, 10, False, True)
    assert EagerBackend().why_not(spec, problem) == []
    y, h_n, _ = EagerBackend().forward(
        spec.layer(0), DENSE, x.flatten(0, 1), x.new_zeros(1, 2, 4), list(rnn.parameters()), False
    )
    torch.testing.assert_close((y.view(5, 2, 4), h_n), rnn(x))

"""Protects single steps by the operators of torch's Cells, which the eager backend uses."""

import pytest
import torch
from torch import nn

import rnnjit

B, I, H = 3, 4, 6
CLOSE_32 = {"rtol": 1e-5, "atol": 1e-6}
CELLS = [nn.RNNCell, nn.LSTMCell, nn.GRUCell]


@pytest.mark.parametrize("kind", CELLS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("form", ["plain", "strided", "unbatched", "no state"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_a_cell_on_the_eager_backend_runs_torchs_own_operator(kind, form, bias):
    torch.manual_seed(0)
    cell = kind(I, H, bias=bias)
    fast = rnnjit.compile(cell, backend="eager")
    for _ in range(2):
        x = torch.randn(I, B).t() if form == "strided" else torch.randn(B, I)
        states = tuple(torch.randn(B, H) for _ in range(1 + (kind is nn.LSTMCell)))
        if form == "unbatched":
            x, states = x[0], tuple(state[0] for state in states)
        hx = None if form == "no state" else states if len(states) > 1 else states[0]
        got, expected = fast(x, hx), cell(x, hx)
        close = {"rtol": 0, "atol": 0} if form in ("plain", "no state") else CLOSE_32
        torch.testing.assert_close(got, expected, **close)
        first = [found if torch.is_tensor(found) else found[0] for found in (got, expected)]
        grads = [torch.autograd.grad(y.square().sum(), list(cell.parameters())) for y in first]
        torch.testing.assert_close(*grads, **close)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("recorded", [False, True])
def test_one_step_of_a_stack_of_lstms(bidirectional, batch_first, recorded):
    torch.manual_seed(0)
    options = {"bidirectional": bidirectional, "batch_first": batch_first}
    layer = nn.LSTM(I, H, num_layers=2, **options)
    fast, exact = rnnjit.compile(layer, backend="eager"), nn.LSTM(I, H, num_layers=2, **options)
    exact.double().load_state_dict(layer.state_dict())
    x = torch.randn(B, 1, I) if batch_first else torch.randn(1, B, I)
    hx = tuple(torch.randn(2 * (1 + bidirectional), B, H) for _ in "hc")
    expected = exact(x.double(), tuple(state.double() for state in hx))
    with torch.set_grad_enabled(recorded):
        y, (h, c) = fast(x, hx)
    torch.testing.assert_close((y.double(), (h.double(), c.double())), expected, **CLOSE_32)
    assert y.is_contiguous()
    grads = ()
    if recorded:
        for found in (y, h, c):
            found.add_(1)  # what autograd saved is not what the caller gets
        grads = torch.autograd.grad(y.sum() + c.sum(), list(fast.parameters()))
        expected = torch.autograd.grad(
            expected[0].sum() + expected[1][1].sum(), list(exact.parameters())
        )
        torch.testing.assert_close([g.double() for g in grads], list(expected), **CLOSE_32)
    else:
        y.detach_().zero_()
        assert h.any()

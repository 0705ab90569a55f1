"""Protects calls of an nn.LSTM whose c_0 has another dtype than the weights: as in eager."""

import copy
from contextlib import nullcontext

import pytest
import torch
from onednn import switched
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence

import rnnjit
from rnnjit.frontend import torch_errors

B, I, H = 2, 3, 4
#: The dtype of the layer, that of c_0, the steps, and what torch does with them without oneDNN.
CALLS = [
    (torch.bfloat16, torch.float32, 1, torch.float32),
    (torch.bfloat16, torch.float64, 1, torch.float64),
    (torch.bfloat16, torch.float32, 3, None),  # h_1, which meets the weights, is float32
    (torch.float32, torch.bfloat16, 3, torch.float32),
    (torch.float64, torch.float32, 3, torch.float64),
]


def flat(result):
    y, states = result
    return [y if isinstance(y, torch.Tensor) else y.data, *states]


def outcome(layer, x, states):
    """The results and all gradients of a call, or the exception."""
    h, c = leaves = [state.clone().requires_grad_(torch.is_grad_enabled()) for state in states]
    try:
        results = flat(layer(x, (h, c)))
    except RuntimeError as error:
        return error
    if not torch.is_grad_enabled():
        return results
    loss = sum(result.double().square().sum() for result in results)
    return [*results, *torch.autograd.grad(loss, [*leaves, *layer.parameters()])]


@pytest.mark.parametrize("recorded", [True, False], ids=["grad", "no grad"])
@pytest.mark.parametrize("packed", [False, True], ids=["dense", "packed"])
@pytest.mark.parametrize(("own", "carried", "steps", "becomes"), CALLS)
def test_a_cell_state_of_another_dtype(own, carried, steps, becomes, packed, recorded):
    torch.manual_seed(0)
    layer = nn.LSTM(I, H).to(own).train(recorded)
    fast = rnnjit.compile(layer)
    x = torch.randn(steps, B, I).to(own)
    states = torch.randn(1, B, H).to(own), torch.randn(1, B, H).to(carried)
    given = pack_sequence([x[:, 0], x[: max(1, steps - 1), 1]]) if packed else x
    with nullcontext() if recorded else torch.no_grad():
        for onednn in (True, False):
            with switched(enabled=onednn):
                want, found = outcome(layer, given, states), outcome(fast, given, states)
                if isinstance(want, RuntimeError):
                    assert type(found) is type(want)
                    assert f"hx[1] is {carried} but the weights are {own}" in str(found)
                else:
                    torch.testing.assert_close(found, want)
        if becomes is None:
            assert isinstance(found, RuntimeError)
            return
        assert {result.dtype for result in found[:3]} == {becomes}
        exact = outcome(
            *(copy.deepcopy(layer).double(), given.to(torch.float64)),
            [state.double() for state in states],
        )
    loose = {"rtol": 0.02, "atol": 0.02} if own is torch.bfloat16 else {}
    torch.testing.assert_close(found, exact, check_dtype=False, **loose)


def test_h_0_meets_the_weights_and_must_have_their_dtype():
    fast = rnnjit.compile(nn.LSTM(I, H).double())
    x, h = torch.randn(1, B, I).double(), torch.randn(1, B, H)
    with pytest.raises(RuntimeError, match=r"hx\[0\] is torch.float32 but the weights are"):
        fast(x, (h, h.double()))


def test_torch_computes_such_a_call_once(monkeypatch):
    layer = nn.LSTM(I, H, num_layers=2, dropout=0.5).double()
    fast = rnnjit.compile(layer)
    monkeypatch.setattr(torch_errors, "_raised_by_torch", lambda *_: pytest.fail("asked"))
    x, h = torch.randn(3, B, I).double(), torch.randn(2, B, H).double()
    torch.manual_seed(1)
    want = flat(layer(x, (h, h.float())))
    torch.manual_seed(1)
    torch.testing.assert_close(flat(fast(x, (h, h.float()))), want)


def test_torch_is_not_asked_with_weights_that_do_not_fit():
    fast = rnnjit.compile(nn.LSTM(I, H).double())
    fast.weight_hh_l0 = nn.Parameter(torch.zeros(4 * H, H - 1).double())
    h = torch.randn(1, B, H).double()
    with pytest.raises(RuntimeError, match="weight_hh_l0 must have shape"):
        fast(torch.randn(3, B, I).double(), (h, h.float()))


def test_torch_gets_batch_sizes_without_gaps():
    layer, sizes = nn.LSTM(I, H).double(), torch.tensor([2, 9, 2, 9, 1, 9])[::2]
    data = torch.randn(5, I, dtype=torch.float64)
    states = torch.randn(1, B, H, dtype=torch.float64), torch.randn(1, B, H)
    y, h_n = rnnjit.compile(layer)(PackedSequence(data, sizes), states)
    want = layer(PackedSequence(data, sizes.contiguous()), states)
    torch.testing.assert_close(flat((y, h_n)), flat(want))
    assert y.batch_sizes is sizes

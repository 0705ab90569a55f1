"""Protects the Numba backend's numbers: long sums and streams."""

import pytest
import torch
from torch import nn

import rnnjit


def gradients(module, x, h0):
    x, h0 = x.clone().requires_grad_(), h0.clone().requires_grad_()
    y, h_n = module(x, h0)
    (y.square().sum() + h_n.sum()).backward()
    found = [y.detach(), h_n.detach(), x.grad, h0.grad, *(p.grad for p in module.parameters())]
    module.zero_grad()
    return found


def test_long_sums_are_as_accurate_as_eager():
    torch.manual_seed(0)
    rnn = nn.RNN(2048, 700, nonlinearity="relu")
    x = torch.randn(3, 40, 2048)
    exact = nn.RNN(2048, 700, nonlinearity="relu").double()
    exact.load_state_dict(rnn.state_dict())
    module = rnnjit.compile(rnn, backend="numba")
    h0 = torch.zeros(1, 40, 700)
    truth = gradients(exact, x.double(), h0.double())
    for true, eager, ours in zip(
        truth, gradients(rnn, x, h0), gradients(module, x, h0), strict=True
    ):
        allowed = 2 * (eager - true).abs().max() + 2e-7 * true.abs().max()
        assert (ours - true).abs().max() <= allowed


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sizes", [(37, 83), (130, 200), (3, 600)], ids=str)
def test_bits_of_a_stream_are_those_of_the_whole_sequence(dtype, sizes):
    torch.manual_seed(0)
    I, H = sizes
    module = rnnjit.compile(nn.RNN(I, H, bidirectional=False).to(dtype), backend="numba")
    x, h = torch.randn(30, 2, I, dtype=dtype), torch.randn(1, 2, H, dtype=dtype)
    with torch.no_grad():
        whole, last = module(x, h)
        for t in range(30):
            y, h = module(x[t : t + 1], h)
            assert torch.equal(y, whole[t : t + 1])
    assert torch.equal(h, last)

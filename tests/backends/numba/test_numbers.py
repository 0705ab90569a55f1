"""Protects the Numba backend's numbers: long sums, streams, and windows of the backward pass."""

import pytest
import torch
from teams import forget_plans
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

import rnnjit
from rnnjit_numba import plan


def gradients(module, x, h0, lengths=None):
    x, h0 = x.clone().requires_grad_(), h0.clone().requires_grad_()
    y, h_n = module(x if lengths is None else pack_padded_sequence(x, lengths), h0)
    y = y if lengths is None else y.data
    (y.square().sum() + h_n.sum()).backward()
    found = [y.detach(), h_n.detach(), x.grad, h0.grad, *(p.grad for p in module.parameters())]
    module.zero_grad()
    return found


@pytest.fixture
def threads(always_teams):
    """Restores torch's thread count."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


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


@pytest.fixture
def windows(monkeypatch):
    """Sets how many rows a backward pass computes before it sums them."""

    def choose(rows):
        monkeypatch.setattr(plan, "_WINDOW_ROWS", rows)
        monkeypatch.setattr(plan, "_WINDOW_BATCHES", 1)
        forget_plans()

    yield choose
    forget_plans()


@pytest.mark.parametrize("packed", [False, True], ids=["dense", "packed"])
@pytest.mark.parametrize(
    ("T", "B", "H"),
    [(1200, 1, 40), (700, 1, 300), (150, 7, 33), (150, 7, 200), (40, 50, 20), (3, 500, 24)],
)
def test_gradients_over_many_windows(packed, T, B, H, windows, threads):
    torch.manual_seed(0)
    rnn = nn.RNN(11, H).double()
    x, h0 = torch.randn(T, B, 11).double(), torch.randn(1, B, H).double()
    lengths = torch.linspace(T, 1, B).round().long() if packed else None
    expected = gradients(rnn, x, h0, lengths)
    fast = rnnjit.compile(rnn, backend="numba")
    found = []
    threads(2)
    for rows in (1, 64, 500, 10**6):
        windows(rows)
        found.append(gradients(fast, x, h0, lengths))
    threads(1)
    found.append(gradients(fast, x, h0, lengths))
    for part, result in enumerate(found[0]):
        torch.testing.assert_close(result, expected[part])
        assert all(torch.equal(result, other[part]) for other in found)

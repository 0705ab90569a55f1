"""Protects the windows of steps of the CPU backends' backward passes: they change no bit."""

import pytest
import torch
from kinds import called, first_states, layer
from on_cpu import ON_CPU
from teams import forget_plans
from torch.nn.utils.rnn import pack_padded_sequence

import rnnjit
from rnnjit.codegen import plan


def gradients(module, x, hx, lengths=None):
    """y, the last states and every gradient."""
    x, hx = x.clone().requires_grad_(), tuple(h.clone().requires_grad_() for h in hx)
    y, last = called(module, x if lengths is None else pack_padded_sequence(x, lengths), hx)
    y = y if lengths is None else y.data
    loss = y.square().sum() + sum(state.sum() for state in last)
    return [y.detach(), *last, *torch.autograd.grad(loss, [x, *hx, *module.parameters()])]


@pytest.fixture
def threads(always_teams):
    """Restores torch's thread count."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def windows(monkeypatch):
    """Sets how many rows the backward pass computes before it sums them."""

    def choose(rows):
        monkeypatch.setattr(plan, "_WINDOW_ROWS", rows)
        monkeypatch.setattr(plan, "_WINDOW_BATCHES", 1)
        forget_plans()

    yield choose
    forget_plans()


@pytest.mark.parametrize("backend", [name for name in ("numba", "tvm") if name in ON_CPU])
@pytest.mark.parametrize("packed", [False, True], ids=["dense", "packed"])
@pytest.mark.parametrize(
    ("kind", "D", "T", "B", "H"),
    [
        ("tanh", 1, 1200, 1, 40),
        ("tanh", 1, 700, 1, 300),
        ("tanh", 1, 150, 7, 33),
        ("GRU", 1, 150, 7, 120),
        ("GRU", 2, 150, 7, 33),
        ("LSTM", 1, 40, 50, 20),
        ("projected", 1, 3, 500, 24),
    ],
)
def test_gradients_over_many_windows(kind, D, T, B, H, packed, backend, windows, threads):
    torch.manual_seed(0)
    rnn = layer(kind, 11, H, torch.float64, bidirectional=D == 2)
    x, hx = torch.randn(T, B, 11).double(), first_states(rnn, B)
    lengths = torch.linspace(T, 1, B).round().long() if packed else None
    expected = gradients(rnn, x, hx, lengths)
    fast = rnnjit.compile(rnn, backend=backend)
    found = []
    threads(2)
    for rows in (1, 64, 500, 10**6):
        windows(rows)
        found.append(gradients(fast, x, hx, lengths))
    threads(1)
    found.append(gradients(fast, x, hx, lengths))
    for part, result in enumerate(found[0]):
        torch.testing.assert_close(result, expected[part])
        assert all(torch.equal(result, other[part]) for other in found)

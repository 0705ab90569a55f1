"""Protects the states of every step that the TVM backend's kernels write and take gradients of."""

import pytest
import torch
from kinds import first_states, layer
from torch.nn.utils.rnn import pack_sequence

import rnnjit
from rnnjit_tvm import BACKEND

T, B, I, H = 5, 4, 3, 21


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("LSTM", {"num_layers": 2}),
        ("LSTM", {"bidirectional": True, "bias": False}),
        ("projected", {"bidirectional": True}),
    ],
    ids=str,
)
@pytest.mark.parametrize("packed", [False, True], ids=["dense", "packed"])
def test_states_of_every_step_are_eagers(kind, options, packed, monkeypatch):
    torch.manual_seed(0)
    rnn = layer(kind, I, H, torch.float64, **options)
    hx = tuple(state.requires_grad_() for state in first_states(rnn, B))
    lengths = [T, 3, 3, 1] if packed else [T] * B
    xs = [torch.randn(n, I, dtype=torch.float64, requires_grad=True) for n in lengths]
    called, forward_states = [], BACKEND.forward_states

    def counted(*args):
        called.append(args)
        return forward_states(*args)

    monkeypatch.setattr(BACKEND, "forward_states", counted)
    results = []
    for backend in ("tvm", "eager"):
        x = pack_sequence(xs) if packed else torch.stack(xs, 1)
        y, last, states = rnnjit.compile(rnn, backend=backend)(x, hx, return_states=True)
        every = [state.data if packed else state for each in states for state in each]
        found = [y.data if packed else y, *last, *every]
        generator = torch.Generator().manual_seed(1)
        seeds = [torch.randn(f.shape, generator=generator, dtype=f.dtype) for f in found]
        grads = torch.autograd.grad(found, [*xs, *hx, *rnn.parameters()], seeds)
        results.append([*found, *grads])
    assert len(called) == options.get("num_layers", 1)
    torch.testing.assert_close(*results, rtol=1e-10, atol=1e-10)

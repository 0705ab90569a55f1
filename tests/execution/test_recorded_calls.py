"""Protects repeated recorded calls of a layer, which a backend may run by functions of its own."""

import itertools

import pytest
import torch
from torch import nn

import rnnjit
from rnnjit.backend import Training
from rnnjit.testing import RecomputeBackend

T, B, I, H = 5, 3, 4, 6


def gradients(module, x, h0, seed):
    """y, h_n and the gradients of what needs one, weighed so that no two steps count alike."""
    generator = torch.Generator().manual_seed(seed)
    leaves = [t for t in (x, h0, *module.parameters()) if t is not None and t.requires_grad]
    y, h_n = module(x, h0)
    weigh = [torch.randn(t.shape, generator=generator).to(t) for t in (y, h_n)]
    loss = (y * weigh[0]).sum() + (h_n * weigh[1]).sum()
    return y, h_n, *torch.autograd.grad(loss, leaves)


@pytest.mark.parametrize("shape", [(T, B), (1, B), (T, 1), (1, 1)], ids=str)
@pytest.mark.parametrize("config", list(itertools.product([False, True], repeat=3)), ids=str)
@pytest.mark.parametrize("backend", ["numba", "tvm", RecomputeBackend()])
def test_every_call_agrees_with_eager_in_float64(backend, config, shape):
    torch.manual_seed(0)
    bias, bidirectional, batch_first = config
    rnn = nn.RNN(I, H, bias=bias, bidirectional=bidirectional, batch_first=batch_first)
    fast, exact = (
        rnnjit.compile(rnn, backend=backend),
        nn.RNN(
            I,
            H,
            bias=bias,
            bidirectional=bidirectional,
            batch_first=batch_first,
            dtype=torch.float64,
        ),
    )
    exact.load_state_dict(rnn.state_dict())
    for seed in range(3):
        shown = shape[::-1] if batch_first else shape
        x = torch.randn(*shown, I, requires_grad=seed != 1)
        h0 = torch.randn(1 + bidirectional, shape[1], H, requires_grad=seed == 2) if seed else None
        exactly = [
            t if t is None else t.detach().double().requires_grad_(t.requires_grad) for t in (x, h0)
        ]
        for _ in range(3):
            got, expected = gradients(fast, x, h0, seed), gradients(exact, *exactly, seed)
            for one, other in zip(got, expected, strict=True):
                torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=1e-5)


def test_calls_without_a_state_start_from_zeros_whatever_was_done_to_the_last_state():
    torch.manual_seed(0)
    rnn = nn.RNN(I, H)
    fast, x = rnnjit.compile(rnn, backend="numba"), torch.randn(T, B, I)
    expected = rnn(x)
    for mode in (torch.no_grad, torch.enable_grad, torch.inference_mode):
        for _ in range(3):
            with mode():
                y, h_n = fast(x)
                torch.testing.assert_close((y, h_n), expected)
                y.zero_(), h_n.fill_(9.0)


class Breaks(RecomputeBackend):
    """Its own functions return what `spoil` makes of right results."""

    def __init__(self, spoil_forward=lambda r: r, spoil_backward=lambda g: g):
        self.spoil_forward, self.spoil_backward = spoil_forward, spoil_backward

    def training(self, layer, problem, needs):
        shape = problem.T, problem.B, layer.hidden_size
        numba = rnnjit.backends()["numba"]
        right = numba.training(layer, problem, needs)

        def forward(x, hx, weights):
            y, h_n = right.forward(x, hx, weights)
            assert y.shape == shape
            return self.spoil_forward((y, h_n))

        return Training(forward, lambda *given: self.spoil_backward(right.backward(*given)))


def test_what_a_backends_own_functions_return():
    x = torch.randn(T, B, I, requires_grad=True)

    def run(backend):
        y, _ = rnnjit.compile(nn.RNN(I, H), backend=backend)(x)
        return torch.autograd.grad(y.sum(), x)[0]

    assert run(Breaks()).shape == x.shape
    with pytest.raises(rnnjit.BackendError, match="its shortcut: expected a pair"):
        run(Breaks(lambda result: result[0]))
    with pytest.raises(rnnjit.BackendError, match=r"y: expected shape \[5, 3, 6\]"):
        run(Breaks(lambda result: (result[0][1:], result[1])))
    with pytest.raises(rnnjit.BackendError, match="the gradient of x"):
        run(Breaks(spoil_backward=lambda grads: grads._replace(x=None)))
    with pytest.raises(rnnjit.BackendError, match=r"the gradient of x: expected shape \[5, 3, 4\]"):
        run(Breaks(spoil_backward=lambda grads: grads._replace(x=grads.x.flatten(0, 1))))

"""Protects second gradients of compiled cells whose first ones do not follow from their values."""

import pytest
import torch

import rnnjit
from rnnjit.testing import RecomputeBackend


class Spike(torch.autograd.Function):
    @staticmethod
    def forward(ctx, u):
        ctx.save_for_backward(u)
        return (u > 0).to(u.dtype)

    @staticmethod
    def backward(ctx, grad):
        (u,) = ctx.saved_tensors
        return grad / (1 + u.abs()) ** 2


class Lerp(rnnjit.Cell):
    def forward(self, x, h):
        z = torch.tanh(self.ih(x) + self.hh(h))
        return torch.lerp(h, z, torch.sigmoid(h + z))


class Surrogate(rnnjit.Cell):
    def forward(self, x, h):
        z = torch.tanh(self.ih(x) + self.hh(h))
        return z + Spike.apply(z - 0.1 * h)


class Clamped(rnnjit.Cell):
    def forward(self, x, h):
        z = torch.tanh(self.ih(x) + self.hh(h))
        return torch.clamp(z, min=h * 0.5, max=0.9 - h * h)


@pytest.mark.parametrize("cell", [Lerp, Surrogate, Clamped])
def test_they_are_those_of_the_loop(cell):
    torch.manual_seed(0)
    module = rnnjit.Recurrent(cell(3, 4)).double()
    x = torch.randn(5, 2, 3, dtype=torch.float64, requires_grad=True)
    leaves = [x, *module.parameters()]
    found = []
    for each in (module, rnnjit.compile(module, backend=RecomputeBackend())):
        y, h_n = each(x)
        first = torch.autograd.grad(y.square().sum() + h_n.sum(), leaves, create_graph=True)
        penalty = sum(grad.square().sum() for grad in first)
        found.append([*first, *torch.autograd.grad(penalty, leaves)])
    for theirs, ours in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)

"""Cells as users write them, and what tests compare their stacks with."""

import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence

import rnnjit
from rnnjit.reference import ReferenceBackend, layer_backward

REFERENCE = ReferenceBackend()


class Kept(rnnjit.Backend):
    """The reference as a backend that has a backward pass of its own."""

    name = "kept"

    def forward(self, layer, rows, x, hx, weights, keep):
        return REFERENCE.forward(layer, rows, x, hx, weights, keep)

    def backward(self, layer, rows, x, hx, weights, output, grad_y, grad_h_n, needs):
        found = layer_backward(layer, rows, x, hx, weights, grad_y, grad_h_n, needs)

        def full(grads, tensors, wanted):
            return tuple(
                torch.zeros_like(tensor) if need and grad is None else grad
                for grad, tensor, need in zip(grads, tensors, wanted, strict=True)
            )

        (grad_x,) = full((found.x,), (x,), (needs.x,))
        return found._replace(
            x=grad_x,
            hx=full(found.hx, hx, needs.hx),
            weights=full(found.weights, weights, needs.weights),
        )


class LSTM(rnnjit.Cell):
    """nn.LSTM, written again."""

    def __init__(self, input_size, hidden_size, bias=True, dtype=None):
        super().__init__(input_size, hidden_size, 4, ("h", "c"), bias, dtype=dtype)

    def forward(self, x, h, c):
        i, f, g, o = (self.ih(x) + self.hh(h)).chunk(4, -1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c), c


class LeakyRNN(rnnjit.Cell):
    """A leaky firing-rate network with private noise; its output is no state."""

    def __init__(self, input_size, hidden_size, alpha=0.2, sigma=0.1):
        super().__init__(input_size, hidden_size, states=("v",))
        self.alpha = nn.Parameter(torch.linspace(0.5, 1.5, hidden_size) * alpha)
        self.sigma = sigma

    def forward(self, x, v):
        noise = self.sigma * torch.randn_like(v) if self.training else 0.0
        v = (1 - self.alpha) * v + self.alpha * (self.ih(x) + self.hh(torch.relu(v))) + noise
        return torch.relu(v), v


class PeepholeLSTM(rnnjit.Cell):
    """LSTM whose gates see c; its parameters are rows of one."""

    def __init__(self, input_size, hidden_size):
        super().__init__(input_size, hidden_size, gates=4, states=("h", "c"))
        self.p = nn.Parameter(torch.rand(3, hidden_size) - 0.5)

    def forward(self, x, h, c):
        i, f, g, o = (self.ih(x) + self.hh(h)).chunk(4, -1)
        c = torch.sigmoid(f + self.p[1] * c) * c + torch.sigmoid(i + self.p[0] * c) * torch.tanh(g)
        return torch.sigmoid(o + self.p[2] * c) * torch.tanh(c), c


class IndRNN(rnnjit.Cell):
    """Units that see no other: no recurrent product."""

    def __init__(self, input_size, hidden_size):
        super().__init__(input_size, hidden_size, recurrent=False)
        self.u = nn.Parameter(torch.rand(hidden_size) - 0.5)

    def forward(self, x, h):
        return torch.relu(self.ih(x) + self.u * h)


class Normed(rnnjit.Cell):
    """Its input is normalised, its output is a running mean, and its weights have signs."""

    def __init__(self, input_size, hidden_size):
        super().__init__(input_size, hidden_size, states=("h", "mean"))
        self.norm = nn.LayerNorm(hidden_size)
        signs = torch.where(torch.arange(hidden_size) % 3 == 0, -1.0, 1.0)
        self.register_buffer("signs", signs)

    def forward(self, x, h, mean):
        drive = self.norm(self.ih(x))
        h = torch.tanh(drive + torch.nn.functional.linear(h, self.weight_hh.abs() * self.signs))
        mean = 0.5 * mean + 0.5 * h
        return mean, h, mean


CELLS = {cell.__name__: cell for cell in (LSTM, LeakyRNN, PeepholeLSTM, IndRNN, Normed)}


def tensors(result):
    """All tensors of a result, in order."""
    if isinstance(result, PackedSequence):
        return [result.data]
    if isinstance(result, torch.Tensor):
        return [result]
    return [each for part in result for each in tensors(part)]


def outcome(module, x, *args, seed=0, **kwargs):
    """The results of a call, and the gradients of x and of every parameter.

    The loss multiplies all results by fixed numbers; random draws begin with `seed`.
    """
    data = x.data if isinstance(x, PackedSequence) else x
    leaf = data.detach().clone().requires_grad_()
    given = PackedSequence(leaf, *x[1:]) if isinstance(x, PackedSequence) else leaf
    torch.manual_seed(seed)
    results = tensors(module(given, *args, **kwargs))
    numbers = torch.Generator().manual_seed(17)
    grads = [
        torch.randn(each.shape, generator=numbers, dtype=torch.float64).to(each.dtype)
        for each in results
    ]
    leaves = [leaf, *module.parameters()]
    found = torch.autograd.grad(results, leaves, grads, allow_unused=True)
    zeros = [torch.zeros_like(each) for each in leaves]
    found = [zero if grad is None else grad for grad, zero in zip(found, zeros, strict=True)]
    return [each.detach() for each in results], found

"""The cells of the gallery, each beside one step of the same network written by hand.

A step takes the weights of one direction by name, and vectors: x `[I]`, the states `[H]` each, and
the normal numbers `[H]` of the step where the cell draws noise. It returns the output and the new
states. It shares nothing with the cell: it calls neither its methods nor functions for layers.
"""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import nn

import rnnjit
from rnnjit import cells

DOUBLE = {"dtype": torch.float64}


def logistic(z):
    return 1 / (1 + (-z).exp())


def rectified(z):
    return z * (z > 0)


class Gated(NamedTuple):
    """The parts of the gates, `[G, H]`."""

    x: Any
    h: Any


def gates(w, x, h, count):
    """W x + b and W h + b, the gates apart; nothing where a weight is missing."""
    parts = []
    for side, operand in (("ih", x), ("hh", h)):
        part = w[f"weight_{side}"] @ operand
        if f"bias_{side}" in w:
            part = part + w[f"bias_{side}"]
        parts.append(part.reshape(count, -1))
    return Gated(*parts)


def leaky(phi, weight, w, x, v, xi=None, sigma=0.0):
    """A rate network with these recurrent weights."""
    current = w["weight_ih"] @ x + weight @ phi(v)
    current = current + sum(w[name] for name in ("bias_ih", "bias_hh") if name in w)
    v = v + w["alpha"] * (current - v)
    if xi is not None:
        v = v + sigma * xi
    return phi(v), (v,)


def leaky_relu(w, x, v, xi=None):
    return leaky(rectified, w["weight_hh"], w, x, v, xi, 0.3)


def leaky_softplus(w, x, v):
    return leaky(lambda v: (1 + v.exp()).log(), w["weight_hh"], w, x, v)


def low_rank(w, x, v):
    weight = torch.einsum("ir,jr->ij", w["m"], w["n"]) / len(v)
    return leaky(lambda v: 1 - 2 / (1 + (2 * v).exp()), weight, w, x, v)


def dale(w, x, v):
    size = w["weight_hh"].detach().abs()
    weight = w["weight_hh"] * torch.where(w["weight_hh"] < 0, -1.0, 1.0)
    assert weight.detach().equal(size)
    signs = torch.tensor([1.0] * 4 + [-1.0] * (len(v) - 4), **DOUBLE)
    return leaky(logistic, weight @ torch.diag(signs), w, x, v)


def antisymmetric(w, x, h):
    weight = w["weight_hh"] - w["weight_hh"].T - 0.05 * torch.eye(len(h), **DOUBLE)
    z = w["weight_ih"] @ x + w["bias_ih"] + weight @ h + w["bias_hh"]
    h = h + 0.2 * (1 - 2 / (1 + (2 * z).exp()))
    return h, (h,)


def ugrnn(w, x, h):
    z = gates(w, x, h, 2)
    c, g = (z.x[0] + z.h[0]).tanh(), logistic(z.x[1] + z.h[1] + 0.5)
    h = c + g * (h - c)
    return h, (h,)


def janet(w, x, h):
    z = gates(w, x, h, 2)
    s, c = z.x[0] + z.h[0], (z.x[1] + z.h[1]).tanh()
    h = logistic(s) * h + logistic(1.5 - s) * c
    return h, (h,)


def mgu(w, x, h):
    z = gates(w, x, h, 2)
    f = logistic(z.x[0] + z.h[0])
    h = h + f * ((z.x[1] + f * z.h[1]).tanh() - h)
    return h, (h,)


def ind_rnn(w, x, h):
    h = rectified(w["weight_ih"] @ x + w["bias_ih"] + w["u"] * h)
    return h, (h,)


def peephole(w, x, h, c):
    z = gates(w, x, h, 4)
    i, f, g, o = z.x + z.h
    new = c * logistic(f + w["p"][1] * c) + g.tanh() * logistic(i + w["p"][0] * c)
    h = new.tanh() * logistic(o + w["p"][2] * new)
    return h, (h, new)


#: Functions whose derivatives are the surrogates, of slope 2.
SOFT = {
    "fast_sigmoid": lambda u: u / (1 + 2 * u.abs()),
    "arctan": lambda u: (torch.pi * u).atan() / torch.pi,
    "triangle": lambda u: 2 * (u - u * u.abs() / 2).where(u.abs() < 1, u.sign() / 2),
}


def lif(surrogate, w, x, s, u, i):
    i = 0.7 * i + w["weight_ih"] @ x + w["bias_ih"] + w["weight_hh"] @ s + w["bias_hh"]
    u = 0.8 * u + i - 0.4 * s
    soft = SOFT[surrogate](u - 0.4)
    s = soft + ((u > 0.4).double() - soft).detach()
    return s, (s, u, i)


def elman(w, x, h):
    z = gates(w, x, h, 1)
    h = 1 - 2 / (1 + (2 * (z.x + z.h)[0]).exp())
    return h, (h,)


def lstm(w, x, h, c):
    z = gates(w, x, h, 4)
    i, f, g, o = z.x + z.h
    c = c * logistic(f) + g.tanh() * logistic(i)
    h = c.tanh() * logistic(o)
    return h, (h, c)


def gru(w, x, h):
    x, zh = gates(w, x, h, 3)
    r, z = logistic(x[0] + zh[0]), logistic(x[1] + zh[1])
    n = (x[2] + r * zh[2]).tanh()
    h = n + z * (h - n)
    return h, (h,)


class RNNAgain(rnnjit.Cell):
    """nn.RNN, written again."""

    def forward(self, x, h):
        return torch.tanh(self.ih(x) + self.hh(h))


class LSTMAgain(rnnjit.Cell):
    """nn.LSTM, written again."""

    def __init__(self, input_size, hidden_size, bias=True, device=None, dtype=None):
        super().__init__(input_size, hidden_size, 4, ("h", "c"), bias, device=device, dtype=dtype)

    def forward(self, x, h, c):
        i, f, g, o = (self.ih(x) + self.hh(h)).chunk(4, -1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c), c


class GRUAgain(rnnjit.Cell):
    """nn.GRU, written again."""

    def __init__(self, input_size, hidden_size, bias=True, device=None, dtype=None):
        super().__init__(input_size, hidden_size, 3, ("h",), bias, device=device, dtype=dtype)

    def forward(self, x, h):
        r_x, z_x, n_x = self.ih(x).chunk(3, -1)
        r_h, z_h, n_h = self.hh(h).chunk(3, -1)
        r, z = torch.sigmoid(r_x + r_h), torch.sigmoid(z_x + z_h)
        n = torch.tanh(n_x + r * n_h)
        return (h - n) * z + n


#: The cells written again, by torch's layers.
AGAIN = {nn.RNN: RNNAgain, nn.LSTM: LSTMAgain, nn.GRU: GRUAgain}


@dataclass(frozen=True)
class GalleryCell:
    """A cell, and its step by hand.

    Attributes:
        cls: the class of the cell.
        step: the step by hand.
        options: further arguments of the class.
        noisy: whether a step draws `[B, H]` normal numbers in training.
    """

    cls: Any
    step: Any
    options: dict[str, Any] = field(default_factory=dict)
    noisy: bool = False

    def new(self, input_size, hidden_size, **more):
        """A cell with random parameters, float64 unless `more` says otherwise."""
        return self.cls(input_size, hidden_size, **self.options, **{**DOUBLE, **more})


def _lif(surrogate):
    options = {"alpha": 0.7, "beta": 0.8, "threshold": 0.4, "slope": 2.0}
    step = lambda *given: lif(surrogate, *given)  # noqa: E731 - it has the surrogate
    return GalleryCell(cells.LIF, step, {**options, "surrogate": surrogate})


GALLERY = {
    "leaky": GalleryCell(cells.LeakyRNN, leaky_relu),
    "leaky-noise": GalleryCell(cells.LeakyRNN, leaky_relu, {"sigma": 0.3}, noisy=True),
    "leaky-softplus-no-bias": GalleryCell(
        cells.LeakyRNN, leaky_softplus, {"nonlinearity": "softplus", "bias": False}
    ),
    "low-rank": GalleryCell(cells.LowRankRNN, low_rank, {"rank": 3}),
    "dale": GalleryCell(cells.DaleRNN, dale, {"nonlinearity": "sigmoid"}),
    "antisymmetric": GalleryCell(
        cells.AntisymmetricRNN, antisymmetric, {"epsilon": 0.2, "gamma": 0.05}
    ),
    "ugrnn": GalleryCell(cells.UGRNN, ugrnn, {"forget_bias": 0.5}),
    "janet": GalleryCell(cells.JANET, janet, {"beta": 1.5}),
    "mgu": GalleryCell(cells.MGU, mgu),
    "mgu-no-bias": GalleryCell(cells.MGU, mgu, {"bias": False}),
    "peephole": GalleryCell(cells.PeepholeLSTM, peephole),
    "indrnn": GalleryCell(cells.IndRNN, ind_rnn),
    **{f"lif-{surrogate}": _lif(surrogate) for surrogate in SOFT},
    "rnn-again": GalleryCell(RNNAgain, elman),
    "lstm-again": GalleryCell(LSTMAgain, lstm),
    "gru-again": GalleryCell(GRUAgain, gru),
}

"""Rate networks of computational neuroscience: leaky, of low rank, and with Dale's law."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rnnjit.cells.base import Cell

#: From a neuron's voltage to its firing rate.
RATES: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "softplus": F.softplus,
}


class LeakyRNN(Cell):
    """Leaky firing-rate network, also called continuous-time RNN (CTRNN), with private noise.

        v_t = (1 - alpha) * v_{t-1} + alpha * (W_ih x_t + b_ih + W_hh r_{t-1} + b_hh) + s xi_t
        r_t = phi(v_t)

    The output is the firing rate r; the state is the voltage v. It is Euler's method with step dt
    for a time constant tau, alpha = dt / tau. The noise s xi_t, xi normal, is each neuron's own; it
    is drawn in training alone. s = sqrt(2 alpha) s_rec for noise of standard deviation s_rec in v.

    H. F. Song, G. R. Yang, X.-J. Wang, Training Excitatory-Inhibitory Recurrent Neural Networks for
    Cognitive Tasks: A Simple and Flexible Framework, 2016, whose equations of a network in
    continuous time these discretize. Here alpha is learnt, one number for
    each neuron; `cell.alpha.requires_grad_(False)` keeps it.

    Args:
        input_size: I.
        hidden_size: H.
        alpha: dt / tau, where the parameter `alpha` `[H]` starts.
        sigma: s, the standard deviation of the noise of one step.
        nonlinearity: phi: "relu", "tanh", "sigmoid" or "softplus".
        bias: whether there are b_ih and b_hh.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        ValueError: `nonlinearity` is none of these.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        alpha: float = 0.2,
        sigma: float = 0.0,
        nonlinearity: str = "relu",
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            input_size, hidden_size, states=("v",), bias=bias, device=device, dtype=dtype
        )
        if nonlinearity not in RATES:
            raise ValueError(
                f"nonlinearity: expected one of {', '.join(map(repr, RATES))}, got {nonlinearity!r}"
            )
        self.alpha = nn.Parameter(torch.full((hidden_size,), alpha, device=device, dtype=dtype))
        self.sigma = sigma
        self.nonlinearity = nonlinearity

    def recurrent(self, r: Tensor) -> Tensor:
        """W_hh r + b_hh."""
        return self.hh(r)

    def forward(self, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """From x `[B, I]` and v `[B, H]` to the rates and the new v."""
        phi = RATES[self.nonlinearity]
        drive = self.ih(x) + self.recurrent(phi(v))
        new = (1 - self.alpha) * v + self.alpha * drive
        if self.training and self.sigma > 0:
            new = new + self.sigma * torch.randn_like(v)
        return phi(new), new


class LowRankRNN(LeakyRNN):
    """Leaky rate network whose recurrent weights have a low rank R.

        J = m n^T / H
        v_t = (1 - alpha) * v_{t-1} + alpha * (W_ih x_t + b_ih + J r_{t-1}) + s xi_t
        r_t = phi(v_t)

    F. Mastrogiuseppe, S. Ostojic, Linking Connectivity, Dynamics, and Computations in Low-Rank
    Recurrent Neural Networks, 2018, without the random part of the connectivity there, and
    discretized as `LeakyRNN`. The parameters `m` and `n` are `[H, R]`, and start normal.

    Args:
        input_size: I.
        hidden_size: H.
        rank: R.
        alpha: as of `LeakyRNN`.
        sigma: as of `LeakyRNN`.
        nonlinearity: phi, as of `LeakyRNN`.
        bias: whether there is b_ih.
        device: of the parameters.
        dtype: of the parameters.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        rank: int = 2,
        alpha: float = 0.2,
        sigma: float = 0.0,
        nonlinearity: str = "tanh",
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            input_size, hidden_size, alpha, sigma, nonlinearity, bias, device=device, dtype=dtype
        )
        self.weight_hh = None
        self.bias_hh = None
        self.m = nn.Parameter(torch.randn(hidden_size, rank, device=device, dtype=dtype))
        self.n = nn.Parameter(torch.randn(hidden_size, rank, device=device, dtype=dtype))

    def recurrent(self, r: Tensor) -> Tensor:
        """J r."""
        return F.linear(r, self.m @ self.n.T / self.hidden_size)


class DaleRNN(LeakyRNN):
    """Leaky rate network of excitatory and inhibitory neurons: Dale's law.

        W = |W_hh| D,  D = diag(+1 .. +1, -1 .. -1)
        v_t = (1 - alpha) * v_{t-1} + alpha * (W_ih x_t + b_ih + W r_{t-1} + b_hh) + s xi_t
        r_t = phi(v_t)

    All connections that leave a neuron have one sign, that of its entry in D. Rates must not be
    negative for this to be a sign of the effect: phi is not tanh.

    H. F. Song, G. R. Yang, X.-J. Wang, Training Excitatory-Inhibitory Recurrent Neural Networks for
    Cognitive Tasks: A Simple and Flexible Framework, 2016.

    Args:
        input_size: I.
        hidden_size: H.
        excitatory: the share of the neurons that are excitatory; the first ones are.
        alpha: as of `LeakyRNN`.
        sigma: as of `LeakyRNN`.
        nonlinearity: phi: "relu", "sigmoid" or "softplus".
        bias: whether there are b_ih and b_hh.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        ValueError: `excitatory` is no share, or phi has negative values.
    """

    weight_hh: nn.Parameter
    sign: Tensor

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        excitatory: float = 0.8,
        alpha: float = 0.2,
        sigma: float = 0.0,
        nonlinearity: str = "relu",
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if nonlinearity == "tanh":
            raise ValueError("nonlinearity: expected rates of 0 or more, got 'tanh'")
        if not 0 <= excitatory <= 1:
            raise ValueError(f"excitatory: expected a share from 0 to 1, got {excitatory}")
        super().__init__(
            input_size, hidden_size, alpha, sigma, nonlinearity, bias, device=device, dtype=dtype
        )
        sign = torch.ones(hidden_size, device=device, dtype=dtype)
        sign[round(excitatory * hidden_size) :] = -1
        self.register_buffer("sign", sign)

    def recurrent(self, r: Tensor) -> Tensor:
        """W r + b_hh."""
        return F.linear(r, self.weight_hh.abs() * self.sign, self.bias_hh)

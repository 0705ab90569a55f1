"""Spiking neurons, with surrogate gradients."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from rnnjit.cells.base import Cell


class FastSigmoid(torch.autograd.Function):
    """A spike where u > 0; its derivative is taken to be 1 / (1 + slope |u|)^2.

    F. Zenke, S. Ganguli, SuperSpike: Supervised Learning in Multilayer Spiking Neural Networks,
    2018.
    """

    @staticmethod
    def forward(ctx: Any, u: Tensor, slope: float) -> Tensor:
        """Spikes, 0 or 1."""
        ctx.save_for_backward(u)
        ctx.slope = slope
        return (u > 0).to(u.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """The gradient of u."""
        (u,) = ctx.saved_tensors
        return grad / (1 + ctx.slope * u.abs()) ** 2, None


class Arctan(torch.autograd.Function):
    """A spike where u > 0; its derivative is taken to be slope / 2 / (1 + (pi / 2 slope u)^2).

    W. Fang, Z. Yu, Y. Chen, T. Masquelier, T. Huang, Y. Tian, Incorporating Learnable Membrane Time
    Constant to Enhance Learning of Spiking Neural Networks, 2021.
    """

    @staticmethod
    def forward(ctx: Any, u: Tensor, slope: float) -> Tensor:
        """Spikes, 0 or 1."""
        ctx.save_for_backward(u)
        ctx.slope = slope
        return (u > 0).to(u.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """The gradient of u."""
        (u,) = ctx.saved_tensors
        return grad * (ctx.slope / 2) / (1 + (math.pi / 2 * ctx.slope * u) ** 2), None


class Triangle(torch.autograd.Function):
    """A spike where u > 0; its derivative is taken to be slope max(0, 1 - |u|).

    G. Bellec, D. Salaj, A. Subramoney, R. Legenstein, W. Maass, Long short-term memory and
    learning-to-learn in networks of spiking neurons, 2018.
    """

    @staticmethod
    def forward(ctx: Any, u: Tensor, slope: float) -> Tensor:
        """Spikes, 0 or 1."""
        ctx.save_for_backward(u)
        ctx.slope = slope
        return (u > 0).to(u.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """The gradient of u."""
        (u,) = ctx.saved_tensors
        return grad * ctx.slope * torch.relu(1 - u.abs()), None


SURROGATES: dict[str, type[torch.autograd.Function]] = {
    "fast_sigmoid": FastSigmoid,
    "arctan": Arctan,
    "triangle": Triangle,
}


class LIF(Cell):
    """Leaky integrate-and-fire neurons with synaptic currents.

        i_t = alpha i_{t-1} + W_ih x_t + b_ih + W_hh s_{t-1} + b_hh
        u_t = beta u_{t-1} + i_t - theta s_{t-1}
        s_t = 1 where u_t > theta, else 0

    The output is the spikes s; the states are s, the membrane potential u, and the current i. In
    the backward pass the derivative of a spike by u is a surrogate, a bump around the threshold.

    E. Neftci, H. Mostafa, F. Zenke, Surrogate Gradient Learning in Spiking Neural Networks, 2019,
    but for one difference: there a current drives the membrane from the next step on.

    Args:
        input_size: I.
        hidden_size: H.
        alpha: decay of the current in a step, exp(-dt / tau_syn).
        beta: decay of the potential in a step, exp(-dt / tau_mem).
        threshold: theta.
        surrogate: "fast_sigmoid", "arctan" or "triangle".
        slope: of the surrogate: how narrow the first two are, how high the third is.
        bias: whether there are b_ih and b_hh.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        ValueError: `surrogate` is none of these.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        alpha: float = 0.8,
        beta: float = 0.9,
        threshold: float = 1.0,
        surrogate: str = "fast_sigmoid",
        slope: float = 10.0,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            *(input_size, hidden_size, 1, ("s", "u", "i"), bias), device=device, dtype=dtype
        )
        if surrogate not in SURROGATES:
            raise ValueError(
                f"surrogate: expected one of {', '.join(map(repr, SURROGATES))}, got {surrogate!r}"
            )
        self.alpha = alpha
        self.beta = beta
        self.threshold = threshold
        self.surrogate = surrogate
        self.slope = slope

    def forward(self, x: Tensor, s: Tensor, u: Tensor, i: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """From x `[B, I]` and s, u, i `[B, H]` to the new s, u and i."""
        i = self.alpha * i + self.ih(x) + self.hh(s)
        u = self.beta * u + i - self.threshold * s
        spike: Any = SURROGATES[self.surrogate].apply
        return spike(u - self.threshold, self.slope), u, i

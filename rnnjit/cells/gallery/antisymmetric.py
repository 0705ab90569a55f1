"""The antisymmetric RNN."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rnnjit.cells.base import Cell


class AntisymmetricRNN(Cell):
    """RNN with antisymmetric recurrent weights, a stable system of differential equations.

        h_t = h_{t-1} + epsilon tanh(W_ih x_t + b_ih + (W_hh - W_hh^T - gamma 1) h_{t-1} + b_hh)

    B. Chang, M. Chen, E. Haber, E. H. Chi, AntisymmetricRNN: A Dynamical System View on Recurrent
    Neural Networks, 2019: Euler's method with diffusion, without a gate.

    Args:
        input_size: I.
        hidden_size: H.
        epsilon: the size of a step.
        gamma: the diffusion, which keeps Euler's method stable.
        bias: whether there are b_ih and b_hh.
        device: of the parameters.
        dtype: of the parameters.
    """

    weight_hh: nn.Parameter

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        epsilon: float = 0.1,
        gamma: float = 0.01,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(input_size, hidden_size, bias=bias, device=device, dtype=dtype)
        self.epsilon = epsilon
        self.gamma = gamma

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        """From x `[B, I]` and h `[B, H]` to the new h."""
        weight = self.weight_hh - self.weight_hh.T
        recurrent = F.linear(h, weight, self.bias_hh) - self.gamma * h
        return h + self.epsilon * torch.tanh(self.ih(x) + recurrent)

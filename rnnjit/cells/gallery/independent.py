"""The independently recurrent network."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rnnjit.cells.base import Cell


class IndRNN(Cell):
    """Independently recurrent network: a neuron's state reaches that neuron alone.

        h_t = relu(W_ih x_t + u * h_{t-1} + b_ih)

    S. Li, W. Li, C. Cook, C. Zhu, Y. Gao, Independently Recurrent Neural Network (IndRNN): Building
    A Longer and Deeper RNN, 2018. There is no recurrent product. The parameter `u` is `[H]`, and
    starts uniform from 0 to 1.

    Args:
        input_size: I.
        hidden_size: H.
        bias: whether there is b_ih.
        device: of the parameters.
        dtype: of the parameters.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            input_size, hidden_size, bias=bias, device=device, dtype=dtype, recurrent=False
        )
        self.u = nn.Parameter(torch.rand(hidden_size, device=device, dtype=dtype))

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        """From x `[B, I]` and h `[B, H]` to the new h."""
        return torch.relu(self.ih(x) + self.u * h)

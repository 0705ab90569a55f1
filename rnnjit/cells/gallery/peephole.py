"""The LSTM with peepholes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rnnjit.cells.base import Cell


class PeepholeLSTM(Cell):
    """LSTM whose gates see the cell state.

        i = sigma(W_ii x_t + b_ii + W_hi h_{t-1} + b_hi + p_i * c_{t-1})
        f = sigma(W_if x_t + b_if + W_hf h_{t-1} + b_hf + p_f * c_{t-1})
        g = tanh(W_ig x_t + b_ig + W_hg h_{t-1} + b_hg)
        c_t = f * c_{t-1} + i * g
        o = sigma(W_io x_t + b_io + W_ho h_{t-1} + b_ho + p_o * c_t)
        h_t = o * tanh(c_t)

    A. Graves, Generating Sequences With Recurrent Neural Networks, 2013, equations (7) to (11),
    after F. Gers, N. Schraudolph, J. Schmidhuber, Learning Precise Timing with LSTM Recurrent
    Networks, 2002. The gates are i, f, g, o in the weights, as nn.LSTM's. p_i, p_f and p_o are the
    rows of the parameter `p` `[3, H]`, which starts as the weights do.

    Args:
        input_size: I.
        hidden_size: H.
        bias: whether there are b_i and b_h.
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
            *(input_size, hidden_size, 4, ("h", "c"), bias), device=device, dtype=dtype
        )
        bound = hidden_size**-0.5
        p = torch.empty(3, hidden_size, device=device, dtype=dtype)
        self.p = nn.Parameter(p.uniform_(-bound, bound))

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """From x `[B, I]`, h and c `[B, H]` to the new h and c."""
        i, f, g, o = (self.ih(x) + self.hh(h)).chunk(4, -1)
        i, f = torch.sigmoid(i + self.p[0] * c), torch.sigmoid(f + self.p[1] * c)
        c = f * c + i * torch.tanh(g)
        return torch.sigmoid(o + self.p[2] * c) * torch.tanh(c), c

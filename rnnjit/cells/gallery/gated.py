"""Cells with one gate: UGRNN, JANET and MGU."""

from __future__ import annotations

import torch
from torch import Tensor

from rnnjit.cells.base import Cell


class UGRNN(Cell):
    """Update gate RNN.

        c = tanh(W_ic x_t + b_ic + W_hc h_{t-1} + b_hc)
        g = sigma(W_ig x_t + b_ig + W_hg h_{t-1} + b_hg + forget_bias)
        h_t = g * h_{t-1} + (1 - g) * c

    J. Collins, J. Sohl-Dickstein, D. Sussillo, Capacity and Trainability in Recurrent Neural
    Networks, 2017. The gates are c, g in the weights.

    Args:
        input_size: I.
        hidden_size: H.
        forget_bias: a constant that opens the gate g at the start.
        bias: whether there are b_i and b_h.
        device: of the parameters.
        dtype: of the parameters.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        forget_bias: float = 1.0,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(input_size, hidden_size, gates=2, bias=bias, device=device, dtype=dtype)
        self.forget_bias = forget_bias

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        """From x `[B, I]` and h `[B, H]` to the new h."""
        c, g = (self.ih(x) + self.hh(h)).chunk(2, -1)
        c, g = torch.tanh(c), torch.sigmoid(g + self.forget_bias)
        return g * h + (1 - g) * c


class JANET(Cell):
    """LSTM with the forget gate alone ("just another network").

        s = W_if x_t + b_if + W_hf h_{t-1} + b_hf
        c = tanh(W_ic x_t + b_ic + W_hc h_{t-1} + b_hc)
        h_t = sigma(s) * h_{t-1} + (1 - sigma(s - beta)) * c

    J. van der Westhuizen, J. Lasenby, The unreasonable effectiveness of the forget gate, 2018. The
    gates are f, c in the weights. The paper starts b_f by the chrono initialization; this cell
    starts as every `rnnjit.Cell`.

    Args:
        input_size: I.
        hidden_size: H.
        beta: by how much more is added than forgotten.
        bias: whether there are b_i and b_h.
        device: of the parameters.
        dtype: of the parameters.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        beta: float = 1.0,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(input_size, hidden_size, gates=2, bias=bias, device=device, dtype=dtype)
        self.beta = beta

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        """From x `[B, I]` and h `[B, H]` to the new h."""
        s, c = (self.ih(x) + self.hh(h)).chunk(2, -1)
        return torch.sigmoid(s) * h + (1 - torch.sigmoid(s - self.beta)) * torch.tanh(c)


class MGU(Cell):
    """Minimal gated unit whose gate acts after the recurrent product.

        f = sigma(W_if x_t + b_if + W_hf h_{t-1} + b_hf)
        n = tanh(W_in x_t + b_in + f * (W_hn h_{t-1} + b_hn))
        h_t = (1 - f) * h_{t-1} + f * n

    G.-B. Zhou, J. Wu, C.-L. Zhang, Z.-H. Zhou, Minimal Gated Unit for Recurrent Neural Networks,
    2016, but for one difference: the paper has W_hn (f * h_{t-1}), a second product that waits for
    the gate of the first. Here f multiplies the product, as the reset gate of cuDNN's and torch's
    GRU. The paper's form runs in a `Recurrent`, but `rnnjit.compile` declines it. The gates are f,
    n in the weights.

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
        super().__init__(input_size, hidden_size, gates=2, bias=bias, device=device, dtype=dtype)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        """From x `[B, I]` and h `[B, H]` to the new h."""
        f_x, n_x = self.ih(x).chunk(2, -1)
        f_h, n_h = self.hh(h).chunk(2, -1)
        f = torch.sigmoid(f_x + f_h)
        n = torch.tanh(n_x + f * n_h)
        return (1 - f) * h + f * n

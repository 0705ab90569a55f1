"""Layers of which nothing is compiled, on the CPU: torch's own operator for all of their steps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rnnjit import Rows


def whole(
    cell: str,
    rows: Rows,
    layers: int,
    directions: int,
    bias: bool,
    x: Tensor,
    h0: Tensor,
    weights: Sequence[Tensor],
) -> tuple[Tensor, Tensor]:
    """The forward pass of a dense call, without gradients.

    Args:
        cell: name of the pointwise part.
        rows: how the rows of `x` are laid over time.
        layers: how many there are.
        directions: of each layer.
        bias: whether there are biases among the weights.
        x: T*B*I elements, contiguous.
        h0: `[L*D, B, H]`.
        weights: in nn.RNN's flat order.

    Returns:
        y `[T, B, D*H]` and h_n `[L*D, B, H]`.
    """
    operator = torch.rnn_tanh if cell == "tanh" else torch.rnn_relu
    steps = x.view(rows.T, rows.B, -1)
    return operator(steps, h0, list(weights), bias, layers, 0.0, False, directions == 2, False)

"""Cells as data: the pointwise part of a recurrent layer, apart from its matrix part.

A layer's matrix part is always the pre-activation `z_t = W_ih x_t + b_ih + W_hh h_{t-1} + b_hh`;
a `Cell` says how `h_t` follows from it. Backends look a cell up by name and refuse those they do
not know, so that a new cell is a new value here and not a branch in every kernel.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Cell:
    """The pointwise part `h_t = activation(z_t)`.

    Attributes:
        name: the key backends know it by; for nn.RNN, its `nonlinearity`.
        activation: differentiable map of the pre-activation `[..., H]` to the state `[..., H]`.
    """

    name: str
    activation: Callable[[Tensor], Tensor]


CELLS: dict[str, Cell] = {
    cell.name: cell for cell in (Cell("tanh", torch.tanh), Cell("relu", torch.relu))
}

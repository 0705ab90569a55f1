"""What a plan computes: the part of a layer that goes step by step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

from torch import Tensor

from rnnjit.spec import LayerSpec, Rows


class Forward(NamedTuple):
    """A forward recurrence; all tensors but the weights are contiguous.

    Attributes:
        layer: what the layer is.
        rows: how the rows are laid over time.
        starts: int64 `[T + 1]`, the first row of every step, on the device; None for a dense batch.
        w_hh: `[H, H]`, contiguous, one for each direction.
        h0: `[D, B, H]`.
        y: `[N, D*H]`; holds x W_ih^T + b and is overwritten by the states.
        h_n: `[D, B, H]`, written.
    """

    layer: LayerSpec
    rows: Rows
    starts: Tensor | None
    w_hh: list[Tensor]
    h0: Tensor
    y: Tensor
    h_n: Tensor


class Backward(NamedTuple):
    """A backward recurrence; tensors as in `Forward`.

    Attributes:
        layer: what the layer is.
        rows: how the rows are laid over time.
        starts: int64 `[T + 1]`, the first row of every step, on the device; None for a dense batch.
        w_hh: `[H, H]`, contiguous, one for each direction.
        y: `[N, D*H]`, the states.
        grad_y: `[N, D*H]`, or None for zeros.
        grad_h_n: `[D, B, H]`, or None for zeros.
        dz: `[N, D*H]`, written: the gradients of the pre-activations.
        grad_h0: `[D, B, H]`, written.
    """

    layer: LayerSpec
    rows: Rows
    starts: Tensor | None
    w_hh: list[Tensor]
    y: Tensor
    grad_y: Tensor | None
    grad_h_n: Tensor | None
    dz: Tensor
    grad_h0: Tensor


class Recurrence(ABC):
    """A way to compute recurrences, such as one kernel for all steps or one for each."""

    @abstractmethod
    def forward(self, call: Forward) -> None:
        """Turn the input's share in `call.y` into states; write `call.h_n`."""

    @abstractmethod
    def backward(self, call: Backward) -> None:
        """Write `call.dz` and `call.grad_h0`."""

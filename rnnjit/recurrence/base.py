"""The interface of a recurrence: the part of a layer that runs step by step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

from torch import Tensor

from rnnjit.backend import States
from rnnjit.cells import Cell
from rnnjit.spec import LayerSpec, Rows


class Forward(NamedTuple):
    """The arguments of a forward recurrence; all tensors are contiguous.

    Attributes:
        layer: the configuration of the layer, without projection and cell parameters.
        rows: how the rows are laid over time.
        starts: int64 `[T + 1]`, the first row of every step, on the device; None for a dense batch.
        w_hh: `[G*H, H]`, one for each direction.
        b_hh: `[G*H]`, one for each direction: the bias of the gates whose zh the cell uses apart
            from zx, zero for the other gates. Empty if there are no such gates or no biases.
        hx: each state `[D, B, H]`.
        z: `[N, D*G*H]`; holds x W_ih^T and the biases that are not in `b_hh`. May be overwritten.
        y: `[N, D*H]`, written. For an Elman cell it is the same tensor as `z`.
        saved: `[N, D*H]` for each of `cell.saved`, written; empty if no backward pass follows.
        h_n: each state `[D, B, H]`, written.
    """

    layer: LayerSpec
    rows: Rows
    starts: Tensor | None
    w_hh: list[Tensor]
    b_hh: list[Tensor]
    hx: States
    z: Tensor
    y: Tensor
    saved: States
    h_n: States


class Backward(NamedTuple):
    """The arguments of a backward recurrence; all tensors are contiguous.

    Attributes:
        layer: the configuration of the layer, without projection and cell parameters.
        rows: how the rows are laid over time.
        starts: int64 `[T + 1]`, the first row of every step, on the device; None for a dense batch.
        w_hh: `[G*H, H]`, one for each direction.
        hx: each state `[D, B, H]`.
        y: `[N, D*H]`, the outputs of the forward pass.
        saved: `[N, D*H]` for each of `cell.saved`.
        grad_y: `[N, D*H]`, or None for zeros.
        grad_h_n: for each state `[D, B, H]`, or None for zeros.
        dz: `[N, D*A*H]`, written: the gradients of the A accumulators of `cell.accumulators`.
        grad_hx: for each state `[D, B, H]`, written.
    """

    layer: LayerSpec
    rows: Rows
    starts: Tensor | None
    w_hh: list[Tensor]
    hx: States
    y: Tensor
    saved: States
    grad_y: Tensor | None
    grad_h_n: tuple[Tensor | None, ...]
    dz: Tensor
    grad_hx: States


class Recurrence(ABC):
    """An implementation of recurrences, for example by one kernel for all steps or one per step."""

    @abstractmethod
    def forward(self, call: Forward) -> None:
        """Write `call.y`, `call.saved` and `call.h_n`."""

    @abstractmethod
    def backward(self, call: Backward) -> None:
        """Write `call.dz` and `call.grad_hx`."""


def why_not_cell(cell: Cell) -> list[str]:
    """Why `layer_forward` and `layer_backward` cannot compute a cell; empty if they can."""
    reasons = []
    if cell.parameters:
        reasons.append(f"cell {cell.name!r} has parameters besides its weights")
    if cell.operand is not None:
        reasons.append(f"the recurrent operand of cell {cell.name!r} is not its first state")
    if cell.out_state != 0:
        reasons.append(f"the output of cell {cell.name!r} is not its first state")
    return reasons

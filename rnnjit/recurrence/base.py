"""What a recurrence computes: the part of a layer that goes step by step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

from torch import Tensor

from rnnjit.backend import States
from rnnjit.cells import Cell
from rnnjit.spec import LayerSpec, Rows


class Forward(NamedTuple):
    """A forward recurrence; all tensors but the weights are contiguous.

    Attributes:
        layer: what the layer is, without projection and parameters.
        rows: how the rows are laid over time.
        starts: int64 `[T + 1]`, the first row of every step, on the device; None for a dense batch.
        w_hh: `[G*H, H]`, contiguous, one for each direction.
        b_hh: `[G*H]` for each direction, of those gates whose zh the cell reads apart from zx and
            zero for the others; empty where there is none such.
        hx: each state `[D, B, H]`.
        z: `[N, D*G*H]`; holds x W_ih^T and the biases that are not in `b_hh`. May be overwritten.
        y: `[N, D*H]`, written. For an Elman cell it is `z` itself, and is overwritten.
        saved: `[N, D*H]` for each of `cell.saved`, written; empty where no backward pass follows.
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
    """A backward recurrence; tensors as in `Forward`.

    Attributes:
        layer: what the layer is, without projection and parameters.
        rows: how the rows are laid over time.
        starts: int64 `[T + 1]`, the first row of every step, on the device; None for a dense batch.
        w_hh: `[G*H, H]`, contiguous, one for each direction.
        hx: each state `[D, B, H]`.
        y: `[N, D*H]`.
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
    """A way to compute recurrences, such as one kernel for all steps or one for each."""

    @abstractmethod
    def forward(self, call: Forward) -> None:
        """Write `call.y`, `call.saved` and `call.h_n`."""

    @abstractmethod
    def backward(self, call: Backward) -> None:
        """Write `call.dz` and `call.grad_hx`."""


def why_not_cell(cell: Cell) -> list[str]:
    """Why `layer_forward` and `layer_backward` compute no layers of a cell; empty if they do."""
    reasons = []
    if cell.parameters:
        reasons.append(f"cell {cell.name!r} has parameters beside its weights")
    if cell.operand is not None:
        reasons.append(f"the recurrent operand of cell {cell.name!r} is not its first state")
    if cell.out_state != 0:
        reasons.append(f"the output of cell {cell.name!r} is not its first state")
    return reasons

"""The interface of a recurrence: the part of a layer that runs step by step.

P is H where there is no projection, S the number of states, G that of gates, A that of accumulators
(`CellSpec.accumulators`). All tensors are contiguous. Those of the rows have the columns of the
directions side by side.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

from torch import Tensor

from rnnjit.backend import States
from rnnjit.ir import CellSpec
from rnnjit.spec import LayerSpec, Rows


class Forward(NamedTuple):
    """The arguments of a forward recurrence.

    Attributes:
        layer: the configuration of the layer, without cell parameters.
        rows: how the rows are laid over time.
        starts: int64 `[T + 1]`, the first row of every step, on the device; None for a dense batch.
        w_hh: `[G*H, P]`, one for each direction.
        b_hh: `[G*H]`, one for each direction: the bias of the gates whose zh the cell uses apart
            from zx, zero for the other gates. Empty if there are no such gates or no biases.
        w_hr: `[P, H]`, one for each direction; empty if there is no projection.
        hx: each state `[D, B, P or H]`.
        z: `[N, D*G*H]`; holds x W_ih^T and the biases that are not in `b_hh`. May be overwritten.
        y: `[N, D*P]`, written. For an Elman cell without projection it is the same tensor as `z`.
        saved: `[N, D*H]` for each of `cell.saved`, written; empty if no backward pass follows.
        states: `[N, D*H]` for each state but the first, its values after each row's step, written;
            empty if no backward pass follows.
        out: `[N, D*H]`, the outputs before the projection, written; None if there is no projection
            or no backward pass follows.
        h_n: each state `[D, B, P or H]`, written.
    """

    layer: LayerSpec
    rows: Rows
    starts: Tensor | None
    w_hh: list[Tensor]
    b_hh: list[Tensor]
    w_hr: list[Tensor]
    hx: States
    z: Tensor
    y: Tensor
    saved: States
    states: States
    out: Tensor | None
    h_n: States


class Backward(NamedTuple):
    """The arguments of a backward recurrence.

    Attributes:
        layer: the configuration of the layer, without cell parameters.
        rows: how the rows are laid over time.
        starts: int64 `[T + 1]`, the first row of every step, on the device; None for a dense batch.
        w_hh: `[G*H, P]`, one for each direction.
        w_hr: `[P, H]`, one for each direction; empty if there is no projection.
        hx: each state `[D, B, P or H]`.
        y: `[N, D*P]`, the outputs of the forward pass.
        saved: `[N, D*H]` for each of `cell.saved`.
        states: `[N, D*H]` for each state but the first, its values after each row's step.
        out: `[N, D*H]`, the outputs before the projection; None if there is no projection.
        grad_y: `[N, D*P]`, or None for zeros.
        grad_h_n: for each state `[D, B, P or H]`, or None for zeros.
        dz: `[N, D*A*H]`, written: for each direction the gradients of its accumulators, in the
            blocks of H columns that `dz_blocks` gives. The first G blocks, multiplied by w_hh, are
            a part of the gradient of the first state before.
        dh: `[N, D*P]`, written: the whole gradient of each row's first state, of which that of the
            output is dh w_hr; None if there is no projection.
        grad_hx: for each state `[D, B, P or H]`, written.
    """

    layer: LayerSpec
    rows: Rows
    starts: Tensor | None
    w_hh: list[Tensor]
    w_hr: list[Tensor]
    hx: States
    y: Tensor
    saved: States
    states: States
    out: Tensor | None
    grad_y: Tensor | None
    grad_h_n: tuple[Tensor | None, ...]
    dz: Tensor
    dh: Tensor | None
    grad_hx: States


class Recurrence(ABC):
    """An implementation of recurrences, for example by one kernel for all steps or one per step."""

    @abstractmethod
    def forward(self, call: Forward) -> None:
        """Write `call.y`, `call.saved`, `call.states`, `call.out` and `call.h_n`."""

    @abstractmethod
    def backward(self, call: Backward) -> None:
        """Write `call.dz`, `call.dh` and `call.grad_hx`."""


def dz_blocks(cell: CellSpec) -> tuple[int, ...]:
    """For each accumulator of a cell its block of dz.

    First, gate by gate, those that contain W_hh h; then those that contain W_ih x alone.

        >>> from rnnjit.ir import GRU
        >>> [each.name for each in GRU.accumulators], dz_blocks(GRU)
        (['z_0', 'z_1', 'zx_2', 'zh_2'], (0, 1, 3, 2))
    """
    found, behind = [], len(cell.gates)
    for accumulator in cell.accumulators:
        found.append(accumulator.gate if accumulator.has_hidden else behind)
        behind += not accumulator.has_hidden
    return tuple(found)


def why_not_cell(cell: CellSpec) -> list[str]:
    """Why `layer_forward` and `layer_backward` cannot compute a cell; empty if they can."""
    reasons = []
    if cell.parameters:
        reasons.append(f"cell {cell.name!r} has parameters besides its weights")
    if cell.operand is not None:
        reasons.append(f"the recurrent operand of cell {cell.name!r} is not its first state")
    if cell.out_state != 0:
        reasons.append(f"the output of cell {cell.name!r} is not its first state")
    return reasons


def why_not_projected(cell: CellSpec) -> list[str]:
    """Why they cannot compute layers of a cell with a projection; empty if they can.

    The first state is then the projected output, which the cell's step, H wide, cannot read.
    """
    if cell.states[0] in cell.step.used:
        return [f"proj_size is not supported for cell {cell.name!r}, which reads its first state"]
    return []

"""The interface of a recurrence: the part of a layer that runs step by step.

P is H where there is no projection, S the number of states, G that of gates, A that of accumulators
(`CellSpec.accumulators`), N_P that of parameters, R that of row inputs. All tensors are contiguous,
except that the row inputs and their gradients are columns of x and of its gradient: their rows are
`LayerSpec.features` elements apart. Tensors of the rows have the columns of the directions side by
side. Cells are in normal form (`rnnjit.ir.normal_form`).
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
        w_hh: `[G*H, P]`, one for each direction; `[G*H, 0]` if the cell has no recurrent product.
        b_hh: `[G*H]`, one for each direction: the bias of the gates whose zh the cell uses apart
            from zx, zero for the other gates. Empty if there are no such gates or no biases.
        w_hr: `[P, H]`, one for each direction; empty if there is no projection.
        parameters: for each direction the parameters of the cell, each `[H]`.
        row_inputs: `[N, D*R*H]`, for each direction its row inputs one by one; None if R is 0.
        hx: each state `[D, B, P or H]`.
        z: `[N, D*G*H]`; holds x W_ih^T and the biases that are not in `b_hh`. May be overwritten.
        y: `[N, D*P]`, written. For an Elman cell without projection it is the same tensor as `z`.
        saved: `[N, D*H]` for each of `cell.saved`, written; empty if nothing is kept, which is if
            no backward pass follows and nobody asked for all states.
        states: `[N, D*H]` for each state but the first, its values after each row's step, written;
            empty if nothing is kept.
        out: `[N, D*H]`, the outputs before the projection, written; None if there is no projection
            or nothing is kept.
        h_n: each state `[D, B, P or H]`, written.
    """

    layer: LayerSpec
    rows: Rows
    starts: Tensor | None
    w_hh: list[Tensor]
    b_hh: list[Tensor]
    w_hr: list[Tensor]
    parameters: list[States]
    row_inputs: Tensor | None
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
        w_hh: `[G*H, P]`, one for each direction; `[G*H, 0]` if the cell has no recurrent product.
        w_hr: `[P, H]`, one for each direction; empty if there is no projection.
        parameters: for each direction the parameters of the cell, each `[H]`.
        row_inputs: `[N, D*R*H]`, for each direction its row inputs one by one; None if R is 0.
        hx: each state `[D, B, P or H]`.
        y: `[N, D*P]`, the outputs of the forward pass.
        saved: `[N, D*H]` for each of `cell.saved`.
        states: `[N, D*H]` for each state but the first, its values after each row's step.
        out: `[N, D*H]`, the outputs before the projection; None if there is no projection.
        grad_y: `[N, D*P]`, or None for zeros.
        grad_h_n: for each state `[D, B, P or H]`, or None for zeros.
        grad_states: for each state but the first `[N, D*H]`, the gradient of its values after each
            row's step, or None for zeros; empty if they are all zero.
        dz: `[N, D*A*H]`, written: for each direction the gradients of its accumulators, in the
            blocks of H columns that `dz_blocks` gives. The first G blocks, multiplied by w_hh, are
            a part of the gradient of the first state before, if the cell has a recurrent product.
        dh: `[N, D*P]`, written: the whole gradient of each row's first state, of which that of the
            output is dh w_hr; None if there is no projection.
        grad_parameters: `[N, D*N_P*H]`, written: for each direction the gradients of its parameters
            by each row, which are summed over the rows later; None if none is needed. Blocks of H
            columns for which `cell.backward` has no output are not read.
        grad_row_inputs: `[N, D*R*H]`, written: the gradients of the row inputs, in their places;
            None if they are not needed. Blocks without an output of `cell.backward` hold zeros.
        grad_hx: for each state `[D, B, P or H]`, written.
    """

    layer: LayerSpec
    rows: Rows
    starts: Tensor | None
    w_hh: list[Tensor]
    w_hr: list[Tensor]
    parameters: list[States]
    row_inputs: Tensor | None
    hx: States
    y: Tensor
    saved: States
    states: States
    out: Tensor | None
    grad_y: Tensor | None
    grad_h_n: tuple[Tensor | None, ...]
    grad_states: tuple[Tensor | None, ...]
    dz: Tensor
    dh: Tensor | None
    grad_parameters: Tensor | None
    grad_row_inputs: Tensor | None
    grad_hx: States


class Recurrence(ABC):
    """An implementation of recurrences, for example by one kernel for all steps or one per step."""

    @abstractmethod
    def forward(self, call: Forward) -> None:
        """Write `call.y`, `call.saved`, `call.states`, `call.out` and `call.h_n`."""

    @abstractmethod
    def backward(self, call: Backward) -> None:
        """Write `call.dz`, `call.dh` and the `grad_*` that are there to be written."""


def dz_blocks(cell: CellSpec) -> tuple[int, ...]:
    """For each accumulator of a cell its block of dz.

    First, gate by gate, those that contain W_hh h; then those that contain W_ih x alone, which are
    all of them if the cell has no recurrent product.

        >>> from rnnjit.ir import GRU
        >>> [each.name for each in GRU.accumulators], dz_blocks(GRU)
        (['z_0', 'z_1', 'zx_2', 'zh_2'], (0, 1, 3, 2))
    """
    found, behind = [], len(cell.gates) if cell.has_product else 0
    for accumulator in cell.accumulators:
        found.append(accumulator.gate if accumulator.has_hidden else behind)
        behind += not accumulator.has_hidden
    return tuple(found)


def why_not_cell(cell: CellSpec) -> list[str]:
    """Why `layer_forward` and `layer_backward` cannot compute a cell; empty if they can."""
    reasons = []
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

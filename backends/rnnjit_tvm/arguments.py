"""The fields of the kernels' argument blocks (see `rnnjit.codegen.argument_block`).

Every field is an int64: a number, a flag, or the address of memory that the caller owns. Offsets
and sizes of memory are in elements.
"""

from __future__ import annotations

from typing import NamedTuple

from rnnjit.codegen.backward_call import BackwardFields
from rnnjit.codegen.forward_call import ForwardFields
from rnnjit.codegen.kernel import LINE
from rnnjit.ir import CellSpec


class ForwardArguments(NamedTuple):
    """Arguments of the forward kernel.

    Attributes:
        T, B, N, I, H, P, D: steps, batch, rows, input and hidden features, features of the output,
            directions.
        starts: address of the first row of every step, then N, int64 `[T + 1]`; 0 if dense.
        slices, slice_rows, stride: how the batch is divided, see `rnnjit.codegen.row_slices`.
        parts: number of parts of one slice's hidden columns, each computed by one thread.
        tail: steps of fewer rows than this are divided by their hidden columns between all threads.
        hoist: whether the input projection of a window of steps is computed before them.
        x, h0, y, h_n: `[N, I + D*R*H]` with R row inputs, `[D, B, P]`, `[N, D*P]`, `[D, B, P]`.
        w_ih_0 ... b_hh_1: the weights of each direction; biases may be 0.
        scratch: for each direction, the packed weights and biases (see `preparation`); then the
            pre-activations.
        panel, panel_out, packed: elements of one panel of W_ih and W_hh, of one of W_hr, and of all
            that one direction packs.
        z, z_size, z_rows: offset in the scratch, elements and rows of the memory for the
            pre-activations of a few rows; there is one for each thread and for each direction.
        hoisted, hoisted_size: offset in the scratch of the input projections that are computed
            before the steps, and elements of those of one direction.
        window: rows whose input projection is computed at a time; N with two directions.
        sync: memory by which threads synchronise, zeroed: an area for the team, and one for each
            direction (see `area_bytes`).
        w_hr_0, w_hr_1: the projections of each direction.
        values: `[N, D, values, H]`, what the cell saves of each step; 0 if nothing is saved.
        outputs: `[N, D*H]`, the outputs before the projection; 0 if they are not saved.

    Behind these there are three addresses for each state but the first (see `state_argument`): its
    initial values `[D, B, H]`, its last ones, written, and those after every step, `[N, D*H]`, or
    0. Then the cell's parameters of direction 0 and those of direction 1, each `[H]`.
    """

    T: int
    B: int
    N: int
    I: int
    H: int
    P: int
    D: int
    starts: int
    slices: int
    slice_rows: int
    stride: int
    parts: int
    tail: int
    hoist: int
    x: int
    h0: int
    y: int
    h_n: int
    w_ih_0: int
    w_hh_0: int
    b_ih_0: int
    b_hh_0: int
    w_ih_1: int
    w_hh_1: int
    b_ih_1: int
    b_hh_1: int
    scratch: int
    panel: int
    panel_out: int
    packed: int
    z: int
    z_size: int
    z_rows: int
    hoisted: int
    hoisted_size: int
    window: int
    sync: int
    w_hr_0: int
    w_hr_1: int
    values: int
    outputs: int


class BackwardArguments(NamedTuple):
    """Arguments of the backward kernel; fields not listed here are as in `ForwardArguments`.

    Attributes:
        grad_y, grad_h_n: `[N, D*P]`, `[D, B, P]`, or 0.
        dz_buffer: memory for dz, the gradients of the pre-activations, and of the rows before the
            projection: `[D, N, wide]`, or a window of these (see `backward`).
        dz: where dz of row 0 is, or would be if the window reached that far: set by the kernel.
        dz_columns: columns of a row of dz: H for each accumulator and each parameter that a
            gradient reaches, and P with a projection.
        window: number of rows that are computed before the window moves.
        grad_x, grad_h0: as x and h0, written, or 0.
        grad_w_ih_0 ... grad_b_1: of each direction's weights, and of b_ih; written, or 0 in both
            directions.
        scratch: for each direction the packed transposes of W_hh, W_ih and W_hr; then a row of
            zeros.
        panel, panel_out, packed: elements of one panel of W_hh or W_ih, of one of W_hr, and of one
            direction.
        grad_h, grad_states: offsets in the scratch of the gradients of the states that run through
            the steps, `[D, B, P]` and, for each other state, `[D, B, H]`.
        grad_out, grad_out_size: offset in the scratch, and elements, of the memory for the
            gradients before the projection of `ROW_BLOCK` rows; there is one for each thread.
        before: int64 `[D, N]`, written: the address of the state before each row's step; 0 if dW_hh
            is not needed.
        reduction, reduction_size: memory for the reductions' packed blocks, and its elements per
            task.
        grad_b_hh_0, grad_b_hh_1: gradients of b_hh where they are not those of b_ih; written, or 0.
        grad_w_hr_0, grad_w_hr_1: written, or 0.
        values, outputs: as the forward kernel wrote them.

    Behind these there are five addresses for each state but the first (see `state_argument`): its
    initial values `[D, B, H]`, its values after every step `[N, D*H]`, the gradient of the last
    ones `[D, B, H]`, or 0, that of the initial ones, written, or 0, and that of those after every
    step, or 0. Then the cell's parameters of direction 0 and those of direction 1, each `[H]`, and
    in the same order their gradients, written, or 0.
    """

    T: int
    B: int
    N: int
    I: int
    H: int
    P: int
    D: int
    starts: int
    slices: int
    slice_rows: int
    stride: int
    parts: int
    tail: int
    x: int
    h0: int
    y: int
    w_ih_0: int
    w_hh_0: int
    w_ih_1: int
    w_hh_1: int
    grad_y: int
    grad_h_n: int
    dz_buffer: int
    dz: int
    dz_columns: int
    window: int
    grad_x: int
    grad_h0: int
    grad_w_ih_0: int
    grad_w_hh_0: int
    grad_b_0: int
    grad_w_ih_1: int
    grad_w_hh_1: int
    grad_b_1: int
    scratch: int
    panel: int
    panel_out: int
    packed: int
    grad_h: int
    grad_states: int
    grad_out: int
    grad_out_size: int
    before: int
    reduction: int
    reduction_size: int
    sync: int
    w_hr_0: int
    w_hr_1: int
    grad_b_hh_0: int
    grad_b_hh_1: int
    grad_w_hr_0: int
    grad_w_hr_1: int
    values: int
    outputs: int


Arguments = ForwardArguments | BackwardArguments

_F = ForwardArguments(*range(len(ForwardArguments._fields)))
_B = BackwardArguments(*range(len(BackwardArguments._fields)))
#: The indices of what changes with every call.
FIELDS = ForwardFields(_F.N, _F.x, _F.starts, _F.scratch, _F.w_hr_0)
BACKWARD_FIELDS = BackwardFields(_B.x, _B.grad_x, _B.starts, _B.w_hr_0)
#: Addresses of each state but the first, and of each parameter in either direction, behind the
#: arguments of each kernel.
STATE_ARGUMENTS = {ForwardArguments: 3, BackwardArguments: 5}
PARAMETER_ARGUMENTS = {ForwardArguments: 1, BackwardArguments: 2}


def argument_count(kind: type[Arguments], cell: CellSpec) -> int:
    """The number of int64 words of a kernel's arguments for a cell."""
    return parameter_argument(kind, cell, 0, 0, PARAMETER_ARGUMENTS[kind])


def state_argument(kind: type[Arguments], state: int, which: int) -> int:
    """The index of an argument of state number `state`, which is not the first."""
    return len(kind._fields) + STATE_ARGUMENTS[kind] * (state - 1) + which


def parameter_argument(
    kind: type[Arguments], cell: CellSpec, parameter: int, direction: int, which: int
) -> int:
    """The index of an argument of a parameter in a direction: its address, or its gradient's."""
    behind, count = state_argument(kind, len(cell.states), 0), len(cell.parameters)
    return behind + (2 * which + direction) * count + parameter


def area_bytes(threads: int) -> int:
    """Bytes of an area by which threads synchronise: a cache line for all, and one for each."""
    return LINE * (1 + threads)

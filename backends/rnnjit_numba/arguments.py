"""The fields of the kernels' argument blocks (see `rnnjit.codegen.argument_block`).

Every field is an int64: a number, a flag, or the address of memory that the caller owns.
"""

from __future__ import annotations

from enum import IntEnum
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
        sizes: address of the batch sizes, int64 `[T]`; 0 if dense.
        slices, slice_rows, stride: how the batch is divided, see `rnnjit.codegen.row_slices`.
        parts: number of parts of one slice's hidden columns, each computed by one thread.
        tail: steps of fewer rows than this are divided by their hidden columns between all threads.
        hoist: whether the input projection of all steps is computed before the first.
        direct: whether weights are read in place; then only the bias is packed.
        tile: how products are cut into register tiles, see `tile_shapes.Tiling.code`.
        x, h0, y, h_n: `[N, I + D*R*H]`, `[D, B, P]`, `[N, D*P]`, `[D, B, P]`; behind the input x
            has for each direction the R row inputs of its cell.
        w_ih_0 ... b_hh_1: the weights of each direction.
        scratch: for each direction, the packed weights and biases (see `preparation`); then the
            pre-activations (see `forward`).
        packed_inputs, packed_row, packed_out, packed: bytes of W_ih's part of one packed column
            vector, of the column vector, of one of W_hr, and of all that one direction packs.
        z, z_size, z_rows: offset in the scratch, bytes and rows of the memory for the
            pre-activations of a few rows; there is one for each thread and for each direction.
        hoisted, hoisted_size: offset in the scratch of the input projections that are computed
            before the steps, and bytes of those of one direction.
        window: rows whose input projection is computed at a time; N with two directions.
        sync: memory by which threads synchronise, zeroed: an area for the team, and one for each
            direction (see `area_bytes`).
        w_hr_0, w_hr_1: the projections of each direction.
        values: `[N, D, values, H]`, what the cell saves of each step; 0 if nothing is saved.
        outputs: `[N, D*H]`, the outputs before the projection; 0 if they are not saved.

    Behind these there are three addresses for each state but the first (see `state_argument`): its
    initial values `[D, B, H]`, its last ones, written, and those after every step, `[N, D*H]`, or
    0. Then come the addresses of the cell's parameters `[H]` (see `parameter_argument`).
    """

    T: int
    B: int
    N: int
    I: int
    H: int
    P: int
    D: int
    sizes: int
    slices: int
    slice_rows: int
    stride: int
    parts: int
    tail: int
    hoist: int
    direct: int
    tile: int
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
    packed_inputs: int
    packed_row: int
    packed_out: int
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
        dz_columns: columns of a row of dz: those of all accumulators and of the parameters that a
            gradient reaches, and P with a projection.
        window: number of rows that are computed before the window moves.
        grad_x, grad_h0: as x, and `[D, B, P]`, written, or 0.
        grad_w_ih_0 ... grad_b_1: of each direction's weights, and of b_ih; written, or 0 in both
            directions.
        scratch: for each direction the packed transposes of W_hh, W_ih and W_hr, and a row of
            zeros.
        packed_column, packed_out, packed: bytes of one packed column vector, of one of W_hr, and of
            one direction.
        grad_h, grad_states: offsets in the scratch of the gradients of the states that run through
            the steps, `[D, B, P]` and, for each other state, `[D, B, H]`.
        grad_out, grad_out_size: offset in the scratch, and bytes, of the memory for the gradients
            before the projection of `ROW_BLOCK` rows; there is one for each thread.
        before: int64 `[D, N]`, written: the address of the state before each row's step; 0 if dW_hh
            is not needed.
        outer_rows, outer_vectors: the shape of the reductions' tile.
        reduction, reduction_size: memory for the reductions' packed blocks, and its bytes per task.
        grad_b_hh_0, grad_b_hh_1: gradients of b_hh where they are not those of b_ih; written, or 0.
        grad_w_hr_0, grad_w_hr_1: written, or 0.
        values, outputs: as the forward kernel wrote them.

    Behind these there are five addresses for each state but the first (see `state_argument`): its
    initial values `[D, B, H]`, its values after every step `[N, D*H]`, the gradient of the last
    ones `[D, B, H]`, or 0, that of the initial ones, written, or 0, and that of those after every
    step, or 0. Then come the addresses of the cell's parameters, and those of their gradients,
    written, or 0 (see `parameter_argument`).
    """

    T: int
    B: int
    N: int
    I: int
    H: int
    P: int
    D: int
    sizes: int
    slices: int
    slice_rows: int
    stride: int
    parts: int
    tail: int
    direct: int
    tile: int
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
    packed_column: int
    packed_out: int
    packed: int
    grad_h: int
    grad_states: int
    grad_out: int
    grad_out_size: int
    before: int
    outer_rows: int
    outer_vectors: int
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


_F = ForwardArguments(*range(len(ForwardArguments._fields)))
_B = BackwardArguments(*range(len(BackwardArguments._fields)))
#: The indices of what changes with every call.
FIELDS = ForwardFields(_F.N, _F.x, _F.sizes, _F.scratch, _F.w_hr_0)
BACKWARD_FIELDS = BackwardFields(_B.x, _B.grad_x, _B.sizes, _B.w_hr_0)
Arguments = ForwardArguments | BackwardArguments
#: Addresses of each state but the first behind the arguments of each kernel.
STATE_ARGUMENTS = {ForwardArguments: 3, BackwardArguments: 5}
#: Addresses of each parameter behind those of the states: in each direction, its own and,
#: backward, its gradient's.
PARAMETER_ARGUMENTS = {ForwardArguments: 2, BackwardArguments: 4}


class Int8Words(IntEnum):
    """Words behind the parameters of the forward kernel for int8 matrices.

    See `quantized_products`.

    Attributes:
        SUMS: the address of the sums of W_ih; that of its scales is word 0. Those of W_hh and W_hr
            follow each.
        OF_DIRECTION: words of a direction.
        OFFSET: of the quantized rows in a thread's memory.
        ROW_BYTES: of a quantized row.
        ROWS: how many there may be.
        COUNT: of all words.
    """

    SUMS = 3
    OF_DIRECTION = 6
    OFFSET = 12
    ROW_BYTES = 13
    ROWS = 14
    COUNT = 15


def argument_count(kind: type[Arguments], cell: CellSpec, *, quantized: bool = False) -> int:
    """The number of int64 words of a kernel's arguments for a cell.

    Args:
        kind: the arguments.
        cell: the cell.
        quantized: whether there are `Int8Words`.
    """
    behind = PARAMETER_ARGUMENTS[kind] * len(cell.parameters)
    own = Int8Words.COUNT if quantized else 0
    return state_argument(kind, len(cell.states), 0) + behind + own


def state_argument(kind: type[Arguments], state: int, which: int) -> int:
    """The index of an argument of state number `state`, which is not the first."""
    return len(kind._fields) + STATE_ARGUMENTS[kind] * (state - 1) + which


def parameter_argument(kind: type[Arguments], cell: CellSpec, parameter: int, which: int) -> int:
    """The index of a parameter's argument of direction 0, or of its gradient's if `which` is 1.

    That of direction 1 is as many words further on as the cell has parameters.
    """
    count = len(cell.parameters)
    return state_argument(kind, len(cell.states), 0) + 2 * count * which + parameter


def area_bytes(threads: int) -> int:
    """Bytes of an area by which threads synchronise: a cache line for all, and one for each."""
    return LINE * (1 + threads)

"""The fields of the kernels' argument blocks (see `rnnjit.codegen.argument_block`).

Every field is an int64: a number, a flag, or the address of memory that the caller owns.
"""

from __future__ import annotations

from typing import NamedTuple

from rnnjit.codegen.kernel import LINE


class ForwardArguments(NamedTuple):
    """Arguments of the forward kernel.

    Attributes:
        T, B, N, I, H, D: steps, batch, rows, input and hidden features, directions.
        sizes: address of the batch sizes, int64 `[T]`; 0 if dense.
        slices, slice_rows, stride: how the batch is divided, see `rnnjit.codegen.row_slices`.
        parts: number of parts of one slice's hidden columns, each computed by one thread.
        tail: steps of fewer rows than this are divided by their hidden columns between all threads.
        hoist: whether the input projection of all steps is computed before the first.
        direct: whether weights are read in place; then only the bias is packed.
        tile: how products are cut into register tiles, see `tile_shapes.Tiling.code`.
        x, h0, y, h_n: `[N, I]`, `[D, B, H]`, `[N, D*H]`, `[D, B, H]`.
        w_ih_0 ... b_hh_1: the weights of each direction.
        scratch: for each direction, the packed weights and then the bias.
        packed_inputs, packed_row, packed: bytes of W_ih's part of one packed column vector, of
            the column vector, and of one direction's packed weights and bias.
        sync: memory by which threads synchronise, zeroed: an area for the team, and one for each
            direction (see `area_bytes`).
    """

    T: int
    B: int
    N: int
    I: int
    H: int
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
    packed: int
    sync: int


class BackwardArguments(NamedTuple):
    """Arguments of the backward kernel; fields not listed here are as in `ForwardArguments`.

    Attributes:
        grad_y, grad_h_n: `[N, D*H]`, `[D, B, H]`, or 0.
        dz_buffer: memory for dz, the gradients of the pre-activations: `[D, N, H]`, or a window of
            these (see `backward`).
        dz: where dz of row 0 is, or would be if the window reached that far: set by the kernel.
        window: number of rows that are computed before the window moves.
        grad_x, grad_h0: `[N, I]`, `[D, B, H]`, written, or 0.
        grad_w_ih_0 ... grad_b_1: of each direction's weights, and of the sum of its biases;
            written, or 0 in both directions.
        scratch: for each direction W_hh's and W_ih's packed transposes and a row of zeros.
        packed_column, packed: bytes of one packed column vector, and of one direction.
        before: int64 `[D, N]`, written: the address of the state before each row's step; 0 if dW_hh
            is not needed.
        outer_rows, outer_vectors: the shape of the reductions' tile.
        reduction, reduction_size: memory for the reductions' packed blocks, and its bytes per task.
    """

    T: int
    B: int
    N: int
    I: int
    H: int
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
    packed: int
    before: int
    outer_rows: int
    outer_vectors: int
    reduction: int
    reduction_size: int
    sync: int


def area_bytes(threads: int) -> int:
    """Bytes of an area by which threads synchronise: a cache line for all, and one for each."""
    return LINE * (1 + threads)

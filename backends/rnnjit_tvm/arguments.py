"""The fields of the kernels' argument blocks (see `rnnjit.codegen.argument_block`).

Every field is an int64: a number, a flag, or the address of memory that the caller owns.
"""

from __future__ import annotations

from typing import NamedTuple


class ForwardArguments(NamedTuple):
    """Arguments of the forward kernel.

    Attributes:
        T, B, N, I, H, D: steps, batch, rows, input and hidden features, directions.
        starts: address of the first row of every step, then N, int64 `[T + 1]`; 0 if dense.
        slices, slice_rows, stride: how the batch is divided, see `rnnjit.codegen.row_slices`.
        hoist: whether the input projection of all steps is computed before the first.
        x, h0, y, h_n: `[N, I]`, `[D, B, H]`, `[N, D*H]`, `[D, B, H]`.
        w_ih_0 ... b_hh_1: the weights of each direction; biases may be 0.
        scratch: for each direction, the packed weights and then the bias.
        panel, packed: elements of one panel of weights, and of one direction's scratch.
    """

    T: int
    B: int
    N: int
    I: int
    H: int
    D: int
    starts: int
    slices: int
    slice_rows: int
    stride: int
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
    packed: int


class BackwardArguments(NamedTuple):
    """Arguments of the backward kernel; fields not listed here are as in `ForwardArguments`.

    Attributes:
        grad_y, grad_h_n: `[N, D*H]`, `[D, B, H]`, or 0.
        dz: `[N, D*H]`, written: the gradients of the pre-activations.
        before: int64 `[D, N]`, written: the address of the state before each row's step; 0 if dW_hh
            is not needed.
        grad_x, grad_h0: `[N, I]`, `[D, B, H]`, written, or 0.
        grad_w_ih_0 ... grad_b_1: of each direction's weights, and of the sum of its biases;
            written, or 0.
        scratch: for each direction W_hh's and W_ih's packed transposes, then a row of zeros.
        panel, packed: elements of one panel of weights, and of one direction's scratch.
        windows, window: memory for each thread's window of packed rows, and elements of each.
    """

    T: int
    B: int
    N: int
    I: int
    H: int
    D: int
    starts: int
    slices: int
    slice_rows: int
    stride: int
    x: int
    h0: int
    y: int
    w_ih_0: int
    w_hh_0: int
    w_ih_1: int
    w_hh_1: int
    grad_y: int
    grad_h_n: int
    dz: int
    before: int
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
    packed: int
    windows: int
    window: int

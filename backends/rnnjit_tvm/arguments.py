"""What a kernel is told: the fields of its argument block, all int64.

Addresses point at memory that the caller owns and keeps alive until the kernel returns; 0 stands
for an absent tensor. Tensors are contiguous, in the layouts of `rnnjit.Backend`.
"""

from __future__ import annotations

from typing import NamedTuple


class ForwardArguments(NamedTuple):
    """Arguments of the forward kernel.

    Attributes:
        T, B, I, H, D: steps, batch, input and hidden features, directions.
        cell: the cell's code, see `CELLS`.
        starts: address of the first row of every step and of the one behind, int64 `[T + 1]`; 0
            if dense.
        slices, slice_rows: how many parts the batch is cut into, and rows in each but the last.
        every: distance of a slice's rows: 1, or `slices` where slices take rows in turns.
        x, h0, y, h_n: `[N, I]`, `[D, B, H]`, `[N, D*H]`, `[D, B, H]`. Where `x` is 0 so is `I`, and
            y holds the input's share already.
        w_ih_0 ... b_hh_1: the weights of each direction; biases, and w_ih where `x` is, may be 0.
        scratch: for each direction, the packed weights and then the bias.
        panel, packed: elements of one panel of weights, and of one direction's scratch.
    """

    T: int
    B: int
    I: int
    H: int
    D: int
    cell: int
    starts: int
    slices: int
    slice_rows: int
    every: int
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
    """Arguments of the backward kernel; not named here are those of `ForwardArguments`.

    Attributes:
        w_hh_0, w_hh_1: W_hh of each direction.
        grad_y, grad_h_n: `[N, D*H]`, `[D, B, H]`, or 0.
        dz: `[N, D*H]`, written: the gradients of the pre-activations.
        grad_h0: `[D, B, H]`, written.
        scratch: for each direction W_hh's packed transpose, then a row of zeros.
    """

    T: int
    B: int
    H: int
    D: int
    cell: int
    starts: int
    slices: int
    slice_rows: int
    every: int
    y: int
    w_hh_0: int
    w_hh_1: int
    grad_y: int
    grad_h_n: int
    dz: int
    grad_h0: int
    scratch: int
    panel: int
    packed: int


#: What the arguments call a cell, and no activation at all.
NOTHING = 0
CELLS = {"tanh": 1, "relu": 2}

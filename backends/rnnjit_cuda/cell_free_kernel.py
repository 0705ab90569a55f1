"""The kernels of cells without a recurrent product: a thread runs all steps of one hidden unit.

    forward    out, s_t = step(z_t, s_{t-1})
    backward   dz_t, ds = gradient(..., ds)

Hidden units do not read each other, so that no thread waits for another, as in Lei et al. 2018,
"Simple Recurrent Units for Highly Parallelizable Recurrence". A thread owns a hidden unit of one
sequence of one direction, and keeps its states, or their gradients, in registers. Launch blocks
(x, D) whose threads number at least B * H in x.

Global memory as in `cell_rows`. A step's loads from it are issued one step before.
"""

from __future__ import annotations

from typing import Any

from numba import cuda, types

from rnnjit_cuda.cell_layout import CellLayout
from rnnjit_cuda.cell_rows import backward_rows, backward_tensors, forward_rows, forward_tensors
from rnnjit_cuda.cells import Steps
from rnnjit_cuda.primitives import Element, small
from rnnjit_cuda.register_kernel import place_of, steps_of


def forward(
    element: Element, cell: Steps, layout: CellLayout, _rows: int
) -> tuple[Any, tuple[Any, ...]]:
    """The forward kernel and its signature.

    `kernel(tensors, offsets, T, B, H, packed, keep, has_bias, ld_r)`: as the forward kernel of
    `cell_register_kernel`, but w_hh and b_hh are not read.
    """
    real, step_of = element.real, cell.step
    A, S, loaded = layout.accumulators, layout.states, layout.loaded
    given_size, found_size = layout.given, layout.found
    parameters, load_z, join, store, start, end = forward_rows(element, layout)

    def kernel(
        tensors: Any,
        offsets: Any,
        T: int,
        B: int,
        H: int,
        packed: int,
        keep: int,
        has_bias: int,
        ld_r: int,
    ) -> None:
        thread = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
        d, D = cuda.blockIdx.y, cuda.gridDim.y
        row, column = thread // H, thread % H
        ahead = cuda.local.array(loaded, real)
        z = cuda.local.array(loaded, real)
        given = cuda.local.array(given_size, real)
        found = cuda.local.array(found_size, real)
        if row < B:
            onward, at = d == 0, (d * B + row) * H + column
            length = small(steps_of(offsets, row, T, packed))
            parameters(tensors, given, d, column)
            start(tensors, given, A, at)
            n = place_of(offsets, 0, length, B, row, packed, onward)
            load_z(tensors, ahead, 0, n, d, D, H, column, has_bias, ld_r)
            step = small(0)
            while step < length:
                for v in range(loaded):
                    z[v] = ahead[v]
                n = place_of(offsets, step, length, B, row, packed, onward)
                if step + 1 < length:
                    n_next = place_of(offsets, step + 1, length, B, row, packed, onward)
                    load_z(tensors, ahead, 0, n_next, d, D, H, column, has_bias, ld_r)
                join(given, z, 0, found)
                step_of(given, found)
                for s in range(S):
                    given[A + s] = found[1 + s]
                store(tensors, found, n, d, D, H, column, keep)
                step = small(step + 1)
            end(tensors, given, A, at)

    integer = types.int64
    data = forward_tensors(element, layout)
    return kernel, (data, types.CPointer(integer), *[integer] * 7)


def backward(
    element: Element, cell: Steps, layout: CellLayout, _rows: int
) -> tuple[Any, tuple[Any, ...]]:
    """The backward kernel and its signature.

    `kernel(tensors, offsets, T, B, H, packed, has_grad_y, has_grad_h_n, ld_r, ld_dp, ld_dr)`: as
    the backward kernel of `cell_register_kernel`, but w_hh is not read.
    """
    real, gradient = element.real, cell.gradient
    A, S, each = layout.accumulators, layout.states, layout.ahead
    given_size, found_size = layout.gradients, layout.found_back
    parameters, load_row, join, store, start, end = backward_rows(element, layout)

    def kernel(
        tensors: Any,
        offsets: Any,
        T: int,
        B: int,
        H: int,
        packed: int,
        has_grad_y: int,
        has_grad_h_n: int,
        ld_r: int,
        ld_dp: int,
        ld_dr: int,
    ) -> None:
        thread = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
        d, D = cuda.blockIdx.y, cuda.gridDim.y
        row, column = thread // H, thread % H
        ahead = cuda.local.array(given_size, real)
        given = cuda.local.array(given_size, real)
        found = cuda.local.array(found_size, real)
        if row < B:
            onward, at = d == 1, (d * B + row) * H + column
            length = small(steps_of(offsets, row, T, packed))
            parameters(tensors, given, d, column)
            start(tensors, given, each, at, has_grad_h_n)
            n = place_of(offsets, 0, length, B, row, packed, onward)
            n_next, linked = n, length > 1
            if linked:
                n_next = place_of(offsets, 1, length, B, row, packed, onward)
            load_row(tensors, ahead, 0, n, n_next, linked, at, d, D, H, column, has_grad_y, ld_r)
            step = small(0)
            while step < length:
                for v in range(each):
                    given[v] = ahead[v]
                n_last, linked = n_next, step + 2 < length
                if linked:
                    n_last = place_of(offsets, step + 2, length, B, row, packed, onward)
                if step + 1 < length:
                    one, two = n_next, n_last
                    load_row(
                        tensors, ahead, 0, one, two, linked, at, d, D, H, column, has_grad_y, ld_r
                    )
                join(given)
                gradient(given, found)
                store(tensors, found, n, d, D, H, column, ld_dp, ld_dr)
                for s in range(S):
                    given[each + s] = found[A + s]
                n, n_next, step = n_next, n_last, small(step + 1)
            end(tensors, given, each, at)

    integer = types.int64
    data = backward_tensors(element, layout)
    return kernel, (data, types.CPointer(integer), *[integer] * 9)

"""The block-local kernels of any cell: one launch for all steps, no block waits for another.

    forward    out, s_t = step(z_t + W_hh h_{t-1}, s_{t-1})
    backward   dz_t, ds = gradient(..., ds),   dh += dz_t W_hh

After Diamos et al. 2016, "Persistent RNNs: Stashing Recurrent Weights On-Chip": the weights stay on
the chip for all steps. A block owns `rows` batch rows of one direction and all H hidden units, and
holds the whole W_hh, so that it runs its time loop alone. Launch blocks (ceil(B / rows), D).

Dynamic shared memory, with Hp = `padded(H)` and zeros from unit H on; forward a unit has G sums
over one gate each, backward one sum over G gates (`kernels.sums_of`):

    reals    [rows][gates][Hp]           x: h_{t-1} (forward) or dz_t (backward)
    reals    [splits][rows][sums][Hp]    parts of the sums
    stored   [G][Hp][spread(Hp)]         M[g][k][j] = W_hh[g*H + j][k] or W_hh[g*H + k][j]

A thread takes `width` sums of all rows over one of the `splits` ranges of k. Then it owns unit
`thread % Hp` of every `groups`-th row, with `groups = threads // Hp`: it adds up the parts,
computes the cell, and keeps the states in registers.

Global memory as in `cell_rows`.
"""

from __future__ import annotations

from typing import Any

from numba import cuda, types

from rnnjit_cuda.cell_layout import CellLayout
from rnnjit_cuda.cell_rows import backward_rows, backward_tensors, forward_rows, forward_tensors
from rnnjit_cuda.cells import Steps
from rnnjit_cuda.common import bounds, filling, padded, spread
from rnnjit_cuda.kernels import Sums
from rnnjit_cuda.kernels import splits_of as _splits_of
from rnnjit_cuda.primitives import Element, inlined, load, store

splits_of = inlined(_splits_of)


def forward(
    element: Element, cell: Steps, layout: CellLayout, rows: int
) -> tuple[Any, tuple[Any, ...]]:
    """The forward kernel and its signature.

    `kernel(tensors, offsets, T, B, H, packed, keep, has_bias, ld_r)`: y and h_n are written, states
    and saved values if `keep` is not 0; b_hh is not read if `has_bias` is 0. Direction 1 walks from
    the last step to the first.
    """
    real, zero, width, step_of = element.real, element.real(0), element.width, cell.step
    up, first_hx = element.up, layout.first_hx
    G, A, S, loaded = layout.gates, layout.accumulators, layout.states, layout.loaded
    given_size, found_size, w_hh = layout.given, layout.found, layout.first_more
    parameters, load_z, join, keep_row, start_of, end_of = forward_rows(element, layout)
    sums_each = Sums(G, 1)
    hold, multiply = _holding(element, G, True), _multiplying(element, rows, sums_each)
    add_up, all_z, all_states = _adding(element, rows, G), rows * loaded, rows * S

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
        x = cuda.shared.array(0, real, alignment=16)
        thread, threads = cuda.threadIdx.x, cuda.blockDim.x
        d, D, first = cuda.blockIdx.y, cuda.gridDim.y, cuda.blockIdx.x * rows
        across = padded(H)
        groups, group, column = threads // across, thread // across, thread % across
        splits = splits_of(threads, across, G, 1, width)
        weights = hold(tensors[w_hh] if d == 0 else tensors[w_hh + 1], rows, splits, G, 1, H)
        z = cuda.local.array(all_z, real)
        state = cuda.local.array(all_states, real)
        sums = cuda.local.array(G, real)
        given = cuda.local.array(given_size, real)
        found = cuda.local.array(found_size, real)
        for e in range(thread, rows * across, threads):
            row, j = first + e // across, e % across
            x[e] = zero
            if row < B and j < H:
                x[e] = up(tensors[first_hx][(d * B + row) * H + j])
        last = rows if group < groups and column < H else 0
        if column < H:
            parameters(tensors, given, d, column)
        step = 0
        start, size = bounds(offsets, step, T, B, packed, d == 0)
        while size <= first and step < T:
            step += 1
            start, size = bounds(offsets, step, T, B, packed, d == 0)
        for i in range(rows):
            row = group + i * groups
            if row < last and first + row < B:
                start_of(tensors, state, i * S, (d * B + first + row) * H + column)
            if row < last and first + row < size:
                load_z(tensors, z, i * loaded, start + first + row, d, D, H, column, has_bias, ld_r)
        cuda.syncthreads()
        while size > first:
            multiply(x, weights, across, splits)
            cuda.syncthreads()
            step += 1
            start_next, size_next = bounds(offsets, step, T, B, packed, d == 0)
            for i in range(rows):
                row = group + i * groups
                if row < last and first + row < size:
                    add_up(sums, x, 1, across, splits, row, column)
                    join(given, z, i * loaded, sums)
                    for s in range(S):
                        given[A + s] = state[i * S + s]
                    step_of(given, found)
                    for s in range(S):
                        state[i * S + s] = found[1 + s]
                    x[row * across + column] = found[1]
                    keep_row(tensors, found, start + first + row, d, D, H, column, keep)
                # Loads for the next step overlap with its product.
                if row < last and first + row < size_next:
                    n = start_next + first + row
                    load_z(tensors, z, i * loaded, n, d, D, H, column, has_bias, ld_r)
            start, size = start_next, size_next
            cuda.syncthreads()
        for i in range(rows):
            row = group + i * groups
            if row < last and first + row < B:
                end_of(tensors, state, i * S, (d * B + first + row) * H + column)

    integer = types.int64
    data = forward_tensors(element, layout)
    return kernel, (data, types.CPointer(integer), *[integer] * 7)


def backward(
    element: Element, cell: Steps, layout: CellLayout, rows: int
) -> tuple[Any, tuple[Any, ...]]:
    """The backward kernel and its signature.

    `kernel(tensors, offsets, T, B, H, packed, has_grad_y, has_grad_h_n, ld_r, ld_dp, ld_dr)`: dz,
    grad_hx and the gradients of parameters and row inputs are written. grad_y counts as zero, and
    is not read, if its flag is 0, and so does the gradient of a last state whose bit of
    `has_grad_h_n` is 0. Direction 0 walks from the last step to the first.
    """
    real, zero, width, gradient = element.real, element.real(0), element.width, cell.gradient
    G, A, S, hidden = layout.gates, layout.accumulators, layout.states, layout.hidden
    given_size, found_size, w_hh = layout.gradients, layout.found_back, layout.first_more + 1
    parameters, load_row, join, keep_row, start_of, end_of = backward_rows(element, layout)
    each = layout.ahead
    all_read, all_states = rows * each, rows * S
    hold, multiply = _holding(element, G, False), _multiplying(element, rows, Sums(1, G))
    add_up = _adding(element, rows, 1)

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
        x = cuda.shared.array(0, real, alignment=16)
        thread, threads = cuda.threadIdx.x, cuda.blockDim.x
        d, D, first = cuda.blockIdx.y, cuda.gridDim.y, cuda.blockIdx.x * rows
        across = padded(H)
        groups, group, column = threads // across, thread // across, thread % across
        splits = splits_of(threads, across, 1, G, width)
        weights = hold(tensors[w_hh] if d == 0 else tensors[w_hh + 1], rows, splits, 1, G, H)
        ahead = cuda.local.array(all_read, real)
        grad = cuda.local.array(all_states, real)
        sums = cuda.local.array(1, real)
        given = cuda.local.array(given_size, real)
        found = cuda.local.array(found_size, real)
        # Weights from unit H on are zero, and x must be too: 0 * NaN is NaN.
        for e in range(thread, rows * G * across, threads):
            if e % across >= H:
                x[e] = zero
        last = rows if group < groups and column < H else 0
        if column < H:
            parameters(tensors, given, d, column)
        step = 0
        start, size = bounds(offsets, step, T, B, packed, d == 1)
        while size <= first and step < T:
            step += 1
            start, size = bounds(offsets, step, T, B, packed, d == 1)
        start_next, size_next = bounds(offsets, step + 1, T, B, packed, d == 1)
        for i in range(rows):
            row = first + group + i * groups
            own = (d * B + row) * H + column
            if row - first < last and row < B:
                start_of(tensors, grad, i * S, own, has_grad_h_n)
            if row - first < last and row < size:
                n, former, linked = start + row, start_next + row, row < size_next
                at = i * each
                load_row(
                    tensors, ahead, at, n, former, linked, own, d, D, H, column, has_grad_y, ld_r
                )
        while size > first:
            step += 1
            start_last, size_last = bounds(offsets, step + 1, T, B, packed, d == 1)
            for i in range(rows):
                row = first + group + i * groups
                if row - first < last and row < size:
                    for v in range(each):
                        given[v] = ahead[i * each + v]
                    for s in range(S):
                        given[each + s] = grad[i * S + s]
                    join(given)
                    gradient(given, found)
                    for a in range(A):
                        if hidden[a] >= 0:
                            x[((row - first) * G + hidden[a]) * across + column] = found[a]
                    for s in range(S):
                        grad[i * S + s] = found[A + s]
                    keep_row(tensors, found, start + row, d, D, H, column, ld_dp, ld_dr)
                # Loads for the next step overlap with the product.
                if row - first < last and row < size_next:
                    own = (d * B + row) * H + column
                    n, former, linked = start_next + row, start_last + row, row < size_last
                    at = i * each
                    load_row(
                        tensors,
                        ahead,
                        at,
                        n,
                        former,
                        linked,
                        own,
                        d,
                        D,
                        H,
                        column,
                        has_grad_y,
                        ld_r,
                    )
            cuda.syncthreads()
            multiply(x, weights, across, splits)
            cuda.syncthreads()
            for i in range(rows):
                row = group + i * groups
                if row < last and first + row < size:
                    add_up(sums, x, G, across, splits, row, column)
                    grad[i * S] += sums[0]
            start, size = start_next, size_next
            start_next, size_next = start_last, size_last
        for i in range(rows):
            row = first + group + i * groups
            if row - first < last and row < B:
                end_of(tensors, grad, i * S, (d * B + row) * H + column)

    integer = types.int64
    data = backward_tensors(element, layout)
    return kernel, (data, types.CPointer(integer), *[integer] * 9)


def _holding(element: Element, gates: int, transposed: bool) -> Any:
    """Build `hold(w, rows, splits, of_unit, each, H)`, by which a block copies W_hh.

    It returns the shared memory as stored numbers; `_weights_at` says where the matrix begins.
    """
    fill, stored, weights_at = filling(element, transposed), element.store, _placing(element)

    def hold(w: Any, rows: int, splits: int, of_unit: int, each: int, H: int) -> Any:
        weights = cuda.shared.array(0, stored, alignment=16)
        across = padded(H)
        at = weights_at(rows, across, splits, of_unit, each)
        for g in range(gates):
            fill(weights, at + g * across * spread(across), w, g * H * H, H, 0, across)
        return weights

    return inlined(hold)


def _placing(element: Element) -> Any:
    """Build `weights_at(rows, across, splits, of_unit, each)`: where W_hh begins, stored."""
    ratio: int = element.real.bitwidth // element.store.bitwidth

    def weights_at(rows: int, across: int, splits: int, of_unit: int, each: int) -> int:
        return rows * across * (each + splits * of_unit) * ratio

    return inlined(weights_at)


def _multiplying(element: Element, rows: int, sums_each: Sums) -> Any:
    """Build `multiply(x, weights, across, splits)`, which writes the thread's parts of the sums.

    For every `width` values of k it reads `width` vectors of the weights, adjacent to those of
    neighbouring threads, and one vector of each row of x, the same as they do.
    """
    real, width, load_weights = element.real, element.width, element.load
    zero, weights_at = element.real(0), _placing(element)
    (of_unit, gates), tile, square = sums_each, rows * width, width * width

    def multiply(x: Any, weights: Any, across: int, splits: int) -> None:
        between, long, wide = spread(across), gates * across, of_unit * across
        vectors = wide // width
        split = cuda.threadIdx.x // vectors
        column = (cuda.threadIdx.x - split * vectors) * width
        reach = (long // width + splits - 1) // splits * width
        begin = min(split * reach, long)
        end = min(begin + reach, long)
        sums = cuda.local.array(tile, real)
        w = cuda.local.array(square, real)
        v = cuda.local.array(width, real)
        if split < splits:
            gate = column // across
            at = weights_at(rows, across, splits, of_unit, gates) + column - gate * across
            at += gate * across * between
            for m in range(tile):
                sums[m] = zero
            for k in range(begin, end, width):
                for p in range(width):
                    load_weights(w, p * width, weights, at + (k + p) * between)
                for i in range(rows):
                    load(v, 0, x, i * long + k)
                    for p in range(width):
                        for q in range(width):
                            sums[i * width + q] += v[p] * w[p * width + q]
            for i in range(rows):
                store(x, rows * long + (split * rows + i) * wide + column, sums, i * width)

    return inlined(multiply)


def _adding(element: Element, rows: int, of_unit: int) -> Any:
    """Build `add_up(sums, x, gates, across, splits, row, column)`: all sums of a unit and row."""
    zero = element.real(0)

    def add_up(
        sums: Any, x: Any, gates: int, across: int, splits: int, row: int, column: int
    ) -> None:
        for g in range(of_unit):
            sums[g] = zero
        for split in range(splits):
            at = rows * gates * across + (split * rows + row) * of_unit * across + column
            for g in range(of_unit):
                sums[g] += x[at + g * across]

    return inlined(add_up)

"""The block-local kernels: one launch for all steps, no block waits for another.

    forward    h_t = activation(z_t + W_hh h_{t-1})
    backward   dz_t = (g_t + grad_y_t) activation'(y_t),   g_{t-1} = dz_t W_hh

After Diamos et al. 2016, "Persistent RNNs: Stashing Recurrent Weights On-Chip": the weights stay on
the chip for all steps. Here a block owns `rows` batch rows of one direction and all H hidden units,
and holds the whole matrix, so that it runs its time loop alone. Launch blocks (ceil(B / rows), D).

Dynamic shared memory, with Hp = `padded(H)` and zeros from column H on:

    reals    [rows][Hp]           x: h_{t-1} (forward) or dz_t (backward)
    reals    [splits][rows][Hp]   parts of the sums over k
    stored   [Hp][spread(Hp)]     M[k][j] = W_hh[j][k] (forward) or W_hh[k][j] (backward)

Each step computes sum_k x[row][k] M[k][j]. A thread takes `width` columns of all rows over one of
the `splits` ranges of k. Then it owns column `thread % Hp` of every `groups`-th row: it adds up the
parts and does the pointwise part. There are `groups = threads // Hp`, and `groups * width` splits.

Global memory, owned by the caller and contiguous: y, grad_y and dz `[N, D*H]`, time-major; the rows
of step t are offsets[t] to offsets[t + 1], and row b of each step belongs to sequence b. h0, h_n,
grad_h_n and grad_h0 `[D, B, H]`; w_hh_0 and w_hh_1, one for each direction, `[H, H]` (both must be
given); offsets int64 `[T + 1]`, not read if `packed` is 0: then every step has B rows. T >= 1,
and step 0 has B rows.
"""

from __future__ import annotations

from typing import Any

from numba import cuda, types

from rnnjit_cuda.cells import Pointwise
from rnnjit_cuda.common import bounds, filling, padded, spread
from rnnjit_cuda.primitives import Element, inlined, load, store


def forward(element: Element, cell: Pointwise, rows: int) -> tuple[Any, tuple[Any, ...]]:
    """The forward kernel and its signature.

    `kernel(y, w_hh_0, w_hh_1, h0, h_n, offsets, T, B, H, packed)`: y holds z = x W_ih^T + b and is
    overwritten by the states; h_n is written. Direction 1 walks from the last step to the first.
    """
    real, real_bytes = element.real, element.real.bitwidth // 8
    ratio = real_bytes // (element.store.bitwidth // 8)
    width, up, down, activation = element.width, element.up, element.down, cell.activation
    stored, zero = element.store, element.real(0)
    fill, share_product = filling(element, True), _sharing(element.width)
    multiply, add_up = _multiplying(element, rows), _adding(rows)

    def kernel(
        y: Any,
        w_hh_0: Any,
        w_hh_1: Any,
        h0: Any,
        h_n: Any,
        offsets: Any,
        T: int,
        B: int,
        H: int,
        packed: int,
    ) -> None:
        x = cuda.shared.array(0, real, alignment=16)
        weights = cuda.shared.array(0, stored, alignment=16)
        thread, threads = cuda.threadIdx.x, cuda.blockDim.x
        d, ld, first = cuda.blockIdx.y, cuda.gridDim.y * H, cuda.blockIdx.x * rows
        across = padded(H)
        groups = threads // across
        splits, group, column = groups * width, thread // across, thread % across
        part, vector, begin, end = share_product(thread, across, splits)
        weights_at = rows * across * (1 + splits) * ratio
        fill(weights, weights_at, w_hh_0 if d == 0 else w_hh_1, 0, H, 0, across)
        for e in range(thread, rows * across, threads):
            row, j = first + e // across, e % across
            x[e] = up(h0[(d * B + row) * H + j]) if row < B and j < H else zero
        last = rows if group < groups and column < H else 0
        step = 0
        start, size = bounds(offsets, step, T, B, packed, d == 0)
        while size <= first and step < T:
            step += 1
            start, size = bounds(offsets, step, T, B, packed, d == 0)
        share = cuda.local.array(rows, real)
        total = cuda.local.array(rows, real)
        for i in range(rows):
            row = group + i * groups
            if row < last and first + row < size:
                share[i] = up(y[(start + first + row) * ld + d * H + column])
        cuda.syncthreads()
        while size > first:
            multiply(x, weights, weights_at, across, splits, part, vector, begin, end)
            cuda.syncthreads()
            step += 1
            start_next, size_next = bounds(offsets, step, T, B, packed, d == 0)
            add_up(total, x, across, splits, group, groups, column)
            for i in range(rows):
                row = group + i * groups
                if row < last and first + row < size:
                    h = activation(share[i] + total[i])
                    x[row * across + column] = h
                    y[(start + first + row) * ld + d * H + column] = down(h)
                # Loads for the next step overlap with its product.
                if row < last and first + row < size_next:
                    share[i] = up(y[(start_next + first + row) * ld + d * H + column])
            start, size = start_next, size_next
            cuda.syncthreads()
        for e in range(thread, rows * across, threads):
            row, j = first + e // across, e % across
            if row < B and j < H:
                h_n[(d * B + row) * H + j] = down(x[e])

    data, integer = types.CPointer(element.store), types.int64
    return kernel, (*[data] * 5, types.CPointer(integer), *[integer] * 4)


def backward(element: Element, cell: Pointwise, rows: int) -> tuple[Any, tuple[Any, ...]]:
    """The backward kernel and its signature.

    `kernel(dz, grad_y, y, w_hh_0, w_hh_1, grad_h_n, grad_h0, offsets, T, B, H, packed, has_grad_y,
    has_grad_h_n)`: dz and grad_h0 are written; grad_y and grad_h_n count as zero, and are not read,
    if their flag is 0. Direction 0 walks from the last step to the first.
    """
    real, real_bytes = element.real, element.real.bitwidth // 8
    ratio = real_bytes // (element.store.bitwidth // 8)
    width, up, down, gradient = element.width, element.up, element.down, cell.gradient
    stored, zero = element.store, element.real(0)
    fill, share_product = filling(element, False), _sharing(element.width)
    multiply, add_up = _multiplying(element, rows), _adding(rows)

    def kernel(
        dz: Any,
        grad_y: Any,
        y: Any,
        w_hh_0: Any,
        w_hh_1: Any,
        grad_h_n: Any,
        grad_h0: Any,
        offsets: Any,
        T: int,
        B: int,
        H: int,
        packed: int,
        has_grad_y: int,
        has_grad_h_n: int,
    ) -> None:
        x = cuda.shared.array(0, real, alignment=16)
        weights = cuda.shared.array(0, stored, alignment=16)
        thread, threads = cuda.threadIdx.x, cuda.blockDim.x
        d, ld, first = cuda.blockIdx.y, cuda.gridDim.y * H, cuda.blockIdx.x * rows
        across = padded(H)
        groups = threads // across
        splits, group, column = groups * width, thread // across, thread % across
        part, vector, begin, end = share_product(thread, across, splits)
        weights_at = rows * across * (1 + splits) * ratio
        fill(weights, weights_at, w_hh_0 if d == 0 else w_hh_1, 0, H, 0, across)
        # Weights from column H on are zero, and x must be too: 0 * NaN is NaN.
        for e in range(thread, rows * across, threads):
            if e % across >= H:
                x[e] = zero
        last = rows if group < groups and column < H else 0
        step = 0
        start, size = bounds(offsets, step, T, B, packed, d == 1)
        while size <= first and step < T:
            step += 1
            start, size = bounds(offsets, step, T, B, packed, d == 1)
        grad = cuda.local.array(rows, real)
        above = cuda.local.array(rows, real)
        state = cuda.local.array(rows, real)
        total = cuda.local.array(rows, real)
        for i in range(rows):
            row = group + i * groups
            grad[i], above[i] = zero, zero
            if row < last and first + row < B and has_grad_h_n != 0:
                grad[i] = up(grad_h_n[(d * B + first + row) * H + column])
            if row < last and first + row < size:
                at = (start + first + row) * ld + d * H + column
                state[i] = up(y[at])
                if has_grad_y != 0:
                    above[i] = up(grad_y[at])
        while size > first:
            step += 1
            start_next, size_next = bounds(offsets, step, T, B, packed, d == 1)
            for i in range(rows):
                row = group + i * groups
                if row < last and first + row < size:
                    change = gradient(grad[i] + above[i], state[i])
                    x[row * across + column] = change
                    dz[(start + first + row) * ld + d * H + column] = down(change)
                # Loads for the next step overlap with the product.
                if row < last and first + row < size_next:
                    at = (start_next + first + row) * ld + d * H + column
                    state[i] = up(y[at])
                    if has_grad_y != 0:
                        above[i] = up(grad_y[at])
            cuda.syncthreads()
            multiply(x, weights, weights_at, across, splits, part, vector, begin, end)
            cuda.syncthreads()
            add_up(total, x, across, splits, group, groups, column)
            for i in range(rows):
                if first + group + i * groups < size:
                    grad[i] = total[i]
            start, size = start_next, size_next
        for i in range(rows):
            row = group + i * groups
            if row < last and first + row < B:
                grad_h0[(d * B + first + row) * H + column] = down(grad[i])

    data, integer = types.CPointer(element.store), types.int64
    return kernel, (*[data] * 7, types.CPointer(integer), *[integer] * 6)


def _sharing(width: int) -> Any:
    """Build `share_product(thread, across, splits)`: which part of the product a thread computes.

    It returns the split, the first of `width` columns, and the range of k; the range is empty if
    there are more threads than parts.
    """

    def share_product(thread: int, across: int, splits: int) -> tuple[int, int, int, int]:
        vectors = across // width
        split = thread // vectors
        reach = (vectors + splits - 1) // splits * width
        begin = min(split * reach, across)
        return split, (thread - split * vectors) * width, begin, min(begin + reach, across)

    return inlined(share_product)


def _multiplying(element: Element, rows: int) -> Any:
    """Build `multiply(x, weights, weights_at, across, splits, split, column, begin, end)`.

    It writes the thread's part of the product. For every `width` values of k it reads `width`
    vectors of the weights, adjacent to those of neighbouring threads, and one vector of each row of
    x, the same as they do.
    """
    real, width, load_weights = element.real, element.width, element.load
    zero = element.real(0)
    tile, square = rows * width, width * width

    def multiply(
        x: Any,
        weights: Any,
        weights_at: int,
        across: int,
        splits: int,
        split: int,
        column: int,
        begin: int,
        end: int,
    ) -> None:
        between = spread(across)
        sums = cuda.local.array(tile, real)
        w = cuda.local.array(square, real)
        v = cuda.local.array(width, real)
        if split < splits:
            for m in range(tile):
                sums[m] = zero
            for k in range(begin, end, width):
                for p in range(width):
                    load_weights(w, p * width, weights, weights_at + (k + p) * between + column)
                for i in range(rows):
                    load(v, 0, x, i * across + k)
                    for p in range(width):
                        for q in range(width):
                            sums[i * width + q] += v[p] * w[p * width + q]
            for i in range(rows):
                store(x, (rows + split * rows + i) * across + column, sums, i * width)

    return inlined(multiply)


def _adding(rows: int) -> Any:
    """Build `add_up(total, x, across, splits, group, groups, column)`: a thread's own sums."""

    def add_up(
        total: Any, x: Any, across: int, splits: int, group: int, groups: int, column: int
    ) -> None:
        for i in range(rows):
            total[i] = 0
        for split in range(splits):
            for i in range(rows):
                row = group + i * groups
                if row < rows:
                    total[i] += x[(rows + split * rows + row) * across + column]

    return inlined(add_up)

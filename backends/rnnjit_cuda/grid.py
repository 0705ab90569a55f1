"""The grid-wide plan: one launch for a whole sequence, whose blocks meet once a step.

    forward    h_t = activation(z_t + W_hh h_{t-1})
    backward   dz_t = (g_t + grad_y_t) activation'(y_t),   g_{t-1} = dz_t W_hh

After Diamos et al. 2016, "Persistent RNNs: Stashing Recurrent Weights On-Chip": a block owns
`columns` hidden units of one direction and holds their part of W_hh for all steps. The state goes
from block to block through global memory, which stays in the L2 cache: each step reads one buffer
and writes the other. Launch blocks (ceil(H / columns), D) cooperatively, since they wait for each
other; `columns` is a multiple of `kernels.column_tile`.

Dynamic shared memory, with Hp = `padded(H)`:

    reals    [2][splits][groups][rows * tile]   parts of the sums over k
    stored   [columns][spread(Hp)]              M[c][k] = W_hh[j][k] (forward) or W_hh[k][j]
                                                (backward), where j is the block's column c

Each step computes sum_k x[b][k] M[c][k], `rows` batch rows at a time. A warp computes `tile`
columns of them over one of the `splits` ranges of k, its lanes side by side along k; shuffles add
up the lanes, and one thread for each sum adds up the splits and does the pointwise part.

Global memory as in `block`, and two more buffers of the caller's: `exchange`, reals
`[2, D, B up to rows, Hp]`, uninitialised, aligned to 16 bytes, and `counters`, int64
`[D, COUNTER_STRIDE]`, zero at launch.
"""

from __future__ import annotations

from typing import Any

from numba import cuda, types

from rnnjit_cuda.cells import Cell
from rnnjit_cuda.common import bounds, filling, padded, spread
from rnnjit_cuda.kernels import COUNTER_STRIDE, tile_columns
from rnnjit_cuda.primitives import (
    Element,
    arrive,
    arrived,
    inlined,
    load_exchanged,
    store_exchanged,
)


def forward(element: Element, cell: Cell, rows: int) -> tuple[Any, tuple[Any, ...]]:
    """The forward kernel and its signature.

    `kernel(y, w_hh_0, w_hh_1, h0, h_n, exchange, counters, offsets, T, B, H, columns)`: y holds
    z = x W_ih^T + b and is overwritten by the states; h_n is written. Direction 1 walks from the
    last step to the first.
    """
    real, stored, up, down = element.real, element.store, element.up, element.down
    tile = tile_columns(rows, element.width)
    ratio = element.real.bitwidth // element.store.bitwidth
    zero, activation = element.real(0), inlined(cell.activation)
    fill, multiply, add_up = filling(element, False), _multiplying(element, rows), _adding(element)

    def kernel(
        y: Any,
        w_hh_0: Any,
        w_hh_1: Any,
        h0: Any,
        h_n: Any,
        exchange: Any,
        counters: Any,
        offsets: Any,
        T: int,
        B: int,
        H: int,
        columns: int,
    ) -> None:
        parts = cuda.shared.array(0, real, alignment=16)
        weights = cuda.shared.array(0, stored, alignment=16)
        thread, threads = cuda.threadIdx.x, cuda.blockDim.x
        d, ld, low = cuda.blockIdx.y, cuda.gridDim.y * H, cuda.blockIdx.x * columns
        across, groups = padded(H), columns // tile
        sums, tall = columns * rows, (B + rows - 1) // rows * rows
        splits = threads // 32 // groups
        split, group = thread // 32 // groups, thread // 32 % groups
        weights_at = 2 * splits * sums * ratio
        own_at = weights_at + group * tile * spread(across)
        fill(weights, weights_at, w_hh_0 if d == 0 else w_hh_1, H, low, columns)
        # In both buffers: the sequences that begin later than others in direction 1 read either.
        source, target = d * tall * across, (cuda.gridDim.y + d) * tall * across
        for e in range(thread, B * columns, threads):
            b, j = e // columns, low + e % columns
            if j < across:
                h = up(h0[(d * B + b) * H + j]) if j < H else zero
                store_exchanged(exchange, source + b * across + j, h)
                store_exchanged(exchange, target + b * across + j, h)
        row = thread % (rows * tile) // tile
        column = low + thread // (rows * tile) * tile + thread % tile
        last = B if thread < sums and column < H else 0
        start, size = bounds(offsets, 0, T, d == 0)
        share, turn = zero, 0
        if row < min(size, last):
            share = up(y[(start + row) * ld + d * H + column])
        for step in range(T):
            meet(counters, d, step + 1)
            start_next, size_next = bounds(offsets, step + 1, T, d == 0)
            for top in range(0, size, rows):
                mine, b = share, top + row
                # Of the next tile: it comes while this one's product is made.
                ahead, start_ahead, size_ahead = b + rows, start, size
                if top + rows >= size:
                    ahead, start_ahead, size_ahead = row, start_next, size_next
                if ahead < min(size_ahead, last):
                    share = up(y[(start_ahead + ahead) * ld + d * H + column])
                multiply(
                    parts,
                    turn,
                    exchange,
                    source + top * across,
                    weights,
                    own_at,
                    across,
                    split,
                    splits,
                )
                cuda.syncthreads()
                if b < min(size, last):
                    h = activation(mine + add_up(parts, turn, sums, splits))
                    y[(start + b) * ld + d * H + column] = down(h)
                    store_exchanged(exchange, target + b * across + column, h)
                    if step == T - 1 or (d == 0 and b >= size_next):
                        h_n[(d * B + b) * H + column] = down(h)
                turn = splits * sums - turn
            start, size = start_next, size_next
            source, target = target, source

    data, integer = types.CPointer(element.store), types.int64
    integers = types.CPointer(integer)
    shared = (types.CPointer(element.real), integers, integers)
    return kernel, (*[data] * 5, *shared, *[integer] * 4)


def backward(element: Element, cell: Cell, rows: int) -> tuple[Any, tuple[Any, ...]]:
    """The backward kernel and its signature.

    `kernel(dz, grad_y, y, w_hh_0, w_hh_1, grad_h_n, grad_h0, exchange, counters, offsets, T, B, H,
    columns, has_grad_y, has_grad_h_n)`: dz and grad_h0 are written; grad_y and grad_h_n are zero,
    and not read, where their flag is 0. Direction 0 walks from the last step to the first.

    A step's product is the gradient that the next step of the walk starts from, in the same thread:
    it needs no memory.
    """
    real, stored, up, down = element.real, element.store, element.up, element.down
    tile = tile_columns(rows, element.width)
    ratio = element.real.bitwidth // element.store.bitwidth
    zero, gradient = element.real(0), inlined(cell.gradient)
    fill, multiply, add_up = filling(element, True), _multiplying(element, rows), _adding(element)

    def kernel(
        dz: Any,
        grad_y: Any,
        y: Any,
        w_hh_0: Any,
        w_hh_1: Any,
        grad_h_n: Any,
        grad_h0: Any,
        exchange: Any,
        counters: Any,
        offsets: Any,
        T: int,
        B: int,
        H: int,
        columns: int,
        has_grad_y: int,
        has_grad_h_n: int,
    ) -> None:
        parts = cuda.shared.array(0, real, alignment=16)
        weights = cuda.shared.array(0, stored, alignment=16)
        thread, threads = cuda.threadIdx.x, cuda.blockDim.x
        d, ld, low = cuda.blockIdx.y, cuda.gridDim.y * H, cuda.blockIdx.x * columns
        across, groups = padded(H), columns // tile
        sums, tall = columns * rows, (B + rows - 1) // rows * rows
        splits = threads // 32 // groups
        split, group = thread // 32 // groups, thread // 32 % groups
        weights_at = 2 * splits * sums * ratio
        own_at = weights_at + group * tile * spread(across)
        fill(weights, weights_at, w_hh_0 if d == 0 else w_hh_1, H, low, columns)
        source, target = d * tall * across, (cuda.gridDim.y + d) * tall * across
        # Weights behind column H are zero, and so must be what they are multiplied with.
        for e in range(thread, B * columns, threads):
            b, j = e // columns, low + e % columns
            if j >= H and j < across:
                store_exchanged(exchange, source + b * across + j, zero)
                store_exchanged(exchange, target + b * across + j, zero)
        row = thread % (rows * tile) // tile
        column = low + thread // (rows * tile) * tile + thread % tile
        last = B if thread < sums and column < H else 0
        start, size = bounds(offsets, 0, T, d == 1)
        state, above, turn, done = zero, zero, 0, 0
        if row < min(size, last):
            state = up(y[(start + row) * ld + d * H + column])
            if has_grad_y != 0:
                above = up(grad_y[(start + row) * ld + d * H + column])
        # Step `step` of the walk takes `size` rows, the one before took `done`.
        for step in range(T + 1):
            if step > 0:
                meet(counters, d, step)
            start_next, size_next = bounds(offsets, step + 1, T, d == 1)
            for top in range(0, max(size, done), rows):
                h, grad, b = state, above, top + row
                # Of the next tile: they come while this one's product is made.
                ahead, start_ahead, size_ahead = b + rows, start, size
                if top + rows >= max(size, done):
                    ahead, start_ahead, size_ahead = row, start_next, size_next
                if ahead < min(size_ahead, last):
                    at = (start_ahead + ahead) * ld + d * H + column
                    state = up(y[at])
                    if has_grad_y != 0:
                        above = up(grad_y[at])
                below = zero
                if top < done:
                    multiply(
                        parts,
                        turn,
                        exchange,
                        source + top * across,
                        weights,
                        own_at,
                        across,
                        split,
                        splits,
                    )
                    cuda.syncthreads()
                    if b < min(done, last):
                        below = add_up(parts, turn, sums, splits)
                    turn = splits * sums - turn
                if has_grad_h_n != 0 and done <= b and b < min(size, last):
                    below = up(grad_h_n[(d * B + b) * H + column])
                if b < min(size, last):
                    change = gradient(below + grad, h)
                    dz[(start + b) * ld + d * H + column] = down(change)
                    store_exchanged(exchange, target + b * across + column, change)
                elif b < min(done, last):
                    grad_h0[(d * B + b) * H + column] = down(below)
            done, start, size = size, start_next, size_next
            source, target = target, source

    data, integer = types.CPointer(element.store), types.int64
    integers = types.CPointer(integer)
    shared = (types.CPointer(element.real), integers, integers)
    return kernel, (*[data] * 7, *shared, *[integer] * 6)


def _meet(counters: Any, d: int, times: int) -> None:
    """Wait until all blocks of direction d have come here for the `times`-th time.

    What they wrote before is seen after. Blocks of the other direction are not waited for.
    """
    cuda.syncthreads()
    if cuda.threadIdx.x == 0:
        arrive(counters, d * COUNTER_STRIDE)
        while arrived(counters, d * COUNTER_STRIDE) < times * cuda.gridDim.x:
            pass
    cuda.syncthreads()


meet = inlined(_meet)


def _multiplying(element: Element, rows: int) -> Any:
    """Build `multiply(parts, turn, exchange, x_at, weights, own_at, across, split, splits)`.

    It writes sum_k x[i][k] M[c][k] over the warp's split of k to `parts` from `turn` on, of `rows`
    rows of x at `exchange[x_at]` and the `tile` columns of M that begin at `weights[own_at]`. A
    lane reads a vector of each at a time.
    """
    real, width, load_weights = element.real, element.width, element.load
    zero = element.real(0)
    tile = tile_columns(rows, width)
    count, loaded = rows * tile, rows * width
    fold_16, fold_8, fold_4, fold_2, fold_1 = (_folding(count, s) for s in range(5))

    def multiply(
        parts: Any,
        turn: int,
        exchange: Any,
        x_at: int,
        weights: Any,
        own_at: int,
        across: int,
        split: int,
        splits: int,
    ) -> None:
        lane, warp, between = cuda.threadIdx.x % 32, cuda.threadIdx.x // 32, spread(across)
        sums = cuda.local.array(count, real)
        x = cuda.local.array(loaded, real)
        w = cuda.local.array(width, real)
        for m in range(count):
            sums[m] = zero
        k = (split * 32 + lane) * width
        # No range: by a step that is not a constant, it would divide.
        while k < across:
            for i in range(rows):
                load_exchanged(x, i * width, exchange, x_at + i * across + k)
            for c in range(tile):
                load_weights(w, 0, weights, own_at + c * between + k)
                for i in range(rows):
                    for p in range(width):
                        sums[i * tile + c] += x[i * width + p] * w[p]
            k += splits * 32 * width
        fold_16(sums, lane)
        fold_8(sums, lane)
        fold_4(sums, lane)
        fold_2(sums, lane)
        fold_1(sums, lane)
        if lane % (32 // count) == 0:
            parts[turn + warp * count + lane * count // 32] = sums[0]

    return inlined(multiply)


def _folding(count: int, stage: int) -> Any:
    """Build stage 0 to 4 of adding up `count` (at most 32) sums over the lanes of a warp.

    Of a pair of lanes, the lower keeps the first half of the sums and the upper the second, each
    with the other's added, until one is left; then both keep it. After all stages, lane l has the
    whole of sum `l * count // 32` in `sums[0]`.
    """
    distance, half = 16 >> stage, count >> (stage + 1)

    def halve(sums: Any, lane: int) -> None:
        upper = lane & distance != 0
        for m in range(half):
            kept, given = sums[m], sums[m + half]
            if upper:
                kept, given = given, kept
            sums[m] = kept + cuda.shfl_xor_sync(0xFFFFFFFF, given, distance)

    def join(sums: Any, lane: int) -> None:
        sums[0] += cuda.shfl_xor_sync(0xFFFFFFFF, sums[0], distance)

    return inlined(halve if half else join)


def _adding(element: Element) -> Any:
    """Build `add_up(parts, turn, sums, splits)`: the whole of the sum that the thread owns."""
    zero = element.real(0)

    def add_up(parts: Any, turn: int, sums: int, splits: int) -> Any:
        total = zero
        for split in range(splits):
            total += parts[turn + split * sums + cuda.threadIdx.x]
        return total

    return inlined(add_up)

"""The grid-wide plans: one launch for a whole sequence, whose blocks meet once a step.

    forward    h_t = activation(z_t + W_hh h_{t-1})
    backward   dz_t = (g_t + grad_y_t) activation'(y_t),   g_{t-1} = dz_t W_hh

After Diamos et al. 2016, "Persistent RNNs: Stashing Recurrent Weights On-Chip": a block owns
`columns` hidden units of `slab` sequences in one direction, and holds their part of W_hh for all
steps, or ("stream") reads it in each step, where there is no room for it. The state goes from block
to block through global memory, which stays in the L2 cache: each step reads one buffer and writes
the other. Warps of a block that read the same share it through the L1 cache, which the barrier
empties. Launch blocks (ceil(H / columns), D, ceil(B / slab)) cooperatively, since those of a slab
and direction wait for each other; `columns` is a multiple of `kernels.column_tile`, `slab` of
`rows`.

Dynamic shared memory, with Hp = `padded(H)`:

    reals    [2][teams][splits][groups][rows * tile]   parts of the sums over k
    stored   [columns][spread(Hp)]                     M[c][k] = W_hh[j][k] (forward) or W_hh[k][j]
                                                       (backward), where j is the block's column c;
                                                       not for "stream"

Each step computes sum_k x[b][k] M[c][k], `rows` sequences in each of the block's `teams` at a time.
A warp of a team computes `tile` columns of them over one of the `splits` ranges of k, its lanes
side by side along k; shuffles add up the lanes, and one thread for each sum adds up the splits and
does the pointwise part. There are `groups = columns / tile`, and `groups * splits` warps in a team.

Global memory as in `block`, and two more buffers of the caller's: `exchange`, reals
`[2, D, slabs, slab, Hp]`, uninitialised, aligned to 16 bytes, and `counters`, int64
`[D, slabs, COUNTER_STRIDE]`, zero at launch. For "stream", w_hh_0 and w_hh_1 are M of all columns,
`[x * columns, Hp]`, zero behind H and aligned to 16 bytes.
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
    load,
    small,
)


def forward(
    element: Element, cell: Cell, rows: int, resident: bool = True
) -> tuple[Any, tuple[Any, ...]]:
    """The forward kernel and its signature.

    `kernel(y, w_hh_0, w_hh_1, h0, h_n, exchange, counters, offsets, T, B, H, columns, splits, slab,
    packed)`: y holds z = x W_ih^T + b and is overwritten by the states; h_n is written. Direction 1
    walks from the last step to the first.
    """
    real, up, down = element.real, element.up, element.down
    tile = tile_columns(rows, element.width)
    ratio = element.real.bitwidth // element.store.bitwidth
    zero, activation = element.real(0), inlined(cell.activation)
    hold, multiply = _holding(element, False, resident), _multiplying(element, rows, resident)
    add_up, share_work, place_of = _adding(element), _sharing(tile), _placing(resident)

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
        splits: int,
        slab: int,
        packed: int,
    ) -> None:
        parts = cuda.shared.array(0, real, alignment=16)
        thread, threads = cuda.threadIdx.x, cuda.blockDim.x
        d, D, low = cuda.blockIdx.y, cuda.gridDim.y, cuda.blockIdx.x * columns
        ld, across, sums, first = D * H, padded(H), columns * rows, cuda.blockIdx.z * slab
        teams, team, split, group, place = share_work(columns, splits)
        half = small(teams * splits * sums)
        weights = hold(w_hh_0 if d == 0 else w_hh_1, 2 * half * ratio, H, low, columns)
        own_at = place_of(2 * half * ratio, low, group * tile, across)
        here = cuda.blockIdx.z * D + d
        source, target = here * slab * across, (cuda.gridDim.z * D + here) * slab * across
        own = small(min(slab, B - first))
        # In both buffers: the sequences that begin later than others in direction 1 read either.
        for e in range(thread, own * columns, threads):
            b, j = e // columns, low + e % columns
            if j < across:
                h = up(h0[(d * B + first + b) * H + j]) if j < H else zero
                exchange[source + b * across + j] = h
                exchange[target + b * across + j] = h
        ours, parts_at = small(team * rows), small(team * splits * sums + place)
        row = small(ours + place % (rows * tile) // tile)
        column = small(low + place // (rows * tile) * tile + place % tile)
        last = small(own if place < sums and column < H else 0)
        step = 0
        start, size = bounds(offsets, step, T, B, packed, d == 0)
        while size <= first and step < T:
            step += 1
            start, size = bounds(offsets, step, T, B, packed, d == 0)
        share, turn, met = zero, 0, 0
        # Of the slab: its first row, and how many there are.
        start, size = small(start + first), small(min(size - first, own))
        if row < min(size, last):
            share = up(y[(start + row) * ld + d * H + column])
        while size > 0:
            met = small(met + 1)
            meet(counters, met)
            step = small(step + 1)
            start_next, size_next = bounds(offsets, step, T, B, packed, d == 0)
            start_next = small(start_next + first)
            size_next = small(max(0, min(size_next - first, own)))
            top = small(0)
            while top < size:
                mine, b = share, small(top + row)
                # Of the next tiles: it comes while the product of these is made.
                ahead, start_ahead, size_ahead = b + teams * rows, start, size
                if top + teams * rows >= size:
                    ahead, start_ahead, size_ahead = row, start_next, size_next
                if ahead < min(size_ahead, last):
                    share = up(y[(start_ahead + ahead) * ld + d * H + column])
                if top + ours < size:
                    multiply(
                        parts,
                        turn,
                        exchange,
                        source + (top + ours) * across,
                        weights,
                        own_at,
                        across,
                        split,
                        splits,
                    )
                cuda.syncthreads()
                if b < min(size, last):
                    total = add_up(parts, turn + parts_at, sums, splits)
                    h = activation(mine + total)
                    y[(start + b) * ld + d * H + column] = down(h)
                    exchange[target + b * across + column] = h
                    if b >= size_next:
                        h_n[(d * B + first + b) * H + column] = down(h)
                turn, top = small(half - turn), small(top + teams * rows)
            start, size = start_next, size_next
            source, target = target, source

    data, integer = types.CPointer(element.store), types.int64
    integers = types.CPointer(integer)
    shared = (types.CPointer(element.real), integers, integers)
    return kernel, (*[data] * 5, *shared, *[integer] * 7)


def backward(
    element: Element, cell: Cell, rows: int, resident: bool = True
) -> tuple[Any, tuple[Any, ...]]:
    """The backward kernel and its signature.

    `kernel(dz, grad_y, y, w_hh_0, w_hh_1, grad_h_n, grad_h0, exchange, counters, offsets, T, B, H,
    columns, splits, slab, packed, has_grad_y, has_grad_h_n)`: dz and grad_h0 are written; grad_y
    and grad_h_n are zero, and not read, where their flag is 0. Direction 0 walks from the last step
    to the first.

    A step's product is the gradient that the next step of the walk starts from, in the same thread:
    it needs no memory.
    """
    real, up, down = element.real, element.up, element.down
    tile = tile_columns(rows, element.width)
    ratio = element.real.bitwidth // element.store.bitwidth
    zero, gradient = element.real(0), inlined(cell.gradient)
    hold, multiply = _holding(element, True, resident), _multiplying(element, rows, resident)
    add_up, share_work, place_of = _adding(element), _sharing(tile), _placing(resident)

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
        splits: int,
        slab: int,
        packed: int,
        has_grad_y: int,
        has_grad_h_n: int,
    ) -> None:
        parts = cuda.shared.array(0, real, alignment=16)
        thread, threads = cuda.threadIdx.x, cuda.blockDim.x
        d, D, low = cuda.blockIdx.y, cuda.gridDim.y, cuda.blockIdx.x * columns
        ld, across, sums, first = D * H, padded(H), columns * rows, cuda.blockIdx.z * slab
        teams, team, split, group, place = share_work(columns, splits)
        half = small(teams * splits * sums)
        weights = hold(w_hh_0 if d == 0 else w_hh_1, 2 * half * ratio, H, low, columns)
        own_at = place_of(2 * half * ratio, low, group * tile, across)
        here = cuda.blockIdx.z * D + d
        source, target = here * slab * across, (cuda.gridDim.z * D + here) * slab * across
        own = small(min(slab, B - first))
        # Weights behind column H are zero, and so must be what they are multiplied with.
        for e in range(thread, own * columns, threads):
            b, j = e // columns, low + e % columns
            if j >= H and j < across:
                exchange[source + b * across + j] = zero
                exchange[target + b * across + j] = zero
        ours, parts_at = small(team * rows), small(team * splits * sums + place)
        row = small(ours + place % (rows * tile) // tile)
        column = small(low + place // (rows * tile) * tile + place % tile)
        last = small(own if place < sums and column < H else 0)
        step = 0
        start, size = bounds(offsets, step, T, B, packed, d == 1)
        while size <= first and step < T:
            step += 1
            start, size = bounds(offsets, step, T, B, packed, d == 1)
        state, above, turn, done, met = zero, zero, 0, 0, 0
        # Of the slab: its first row, and how many there are.
        start, size = small(start + first), small(min(size - first, own))
        if row < min(size, last):
            state = up(y[(start + row) * ld + d * H + column])
            if has_grad_y != 0:
                above = up(grad_y[(start + row) * ld + d * H + column])
        # This step of the walk takes `size` rows, the one before took `done`.
        while size > 0 or done > 0:
            if met > 0:
                meet(counters, met)
            met, step = small(met + 1), small(step + 1)
            start_next, size_next = bounds(offsets, step, T, B, packed, d == 1)
            start_next = small(start_next + first)
            size_next = small(max(0, min(size_next - first, own)))
            top = small(0)
            while top < max(size, done):
                h, grad, b = state, above, small(top + row)
                # Of the next tiles: they come while the product of these is made.
                ahead, start_ahead, size_ahead = b + teams * rows, start, size
                if top + teams * rows >= max(size, done):
                    ahead, start_ahead, size_ahead = row, start_next, size_next
                if ahead < min(size_ahead, last):
                    at = (start_ahead + ahead) * ld + d * H + column
                    state = up(y[at])
                    if has_grad_y != 0:
                        above = up(grad_y[at])
                below = zero
                if top < done:
                    if top + ours < done:
                        multiply(
                            parts,
                            turn,
                            exchange,
                            source + (top + ours) * across,
                            weights,
                            own_at,
                            across,
                            split,
                            splits,
                        )
                    cuda.syncthreads()
                    if b < min(done, last):
                        below = add_up(parts, turn + parts_at, sums, splits)
                    turn = small(half - turn)
                if has_grad_h_n != 0 and done <= b and b < min(size, last):
                    below = up(grad_h_n[(d * B + first + b) * H + column])
                if b < min(size, last):
                    change = gradient(below + grad, h)
                    dz[(start + b) * ld + d * H + column] = down(change)
                    exchange[target + b * across + column] = change
                elif b < min(done, last):
                    grad_h0[(d * B + first + b) * H + column] = down(below)
                top = small(top + teams * rows)
            done, start, size = size, start_next, size_next
            source, target = target, source

    data, integer = types.CPointer(element.store), types.int64
    integers = types.CPointer(integer)
    shared = (types.CPointer(element.real), integers, integers)
    return kernel, (*[data] * 7, *shared, *[integer] * 9)


def _sharing(tile: int) -> Any:
    """Build `share_work(columns, splits)`: which part of the products a thread's warp makes.

    It returns how many teams there are, the thread's team, split and group, and its place in the
    team.
    """

    def share_work(columns: int, splits: int) -> tuple[int, int, int, int, int]:
        groups = columns // tile
        warps, warp = groups * splits, cuda.threadIdx.x // 32
        team = warp // warps
        inside = warp - team * warps
        split = inside // groups
        place = cuda.threadIdx.x - team * warps * 32
        return cuda.blockDim.x // (32 * warps), team, split, inside - split * groups, place

    return inlined(share_work)


def _meet(counters: Any, times: int) -> None:
    """Wait until all blocks of a slab and direction have come here for the `times`-th time.

    What they wrote before is seen after.
    """
    cuda.syncthreads()
    if cuda.threadIdx.x == 0:
        index = (cuda.blockIdx.z * cuda.gridDim.y + cuda.blockIdx.y) * COUNTER_STRIDE
        arrive(counters, index)
        while arrived(counters, index) < times * cuda.gridDim.x:
            pass
    cuda.syncthreads()


meet = inlined(_meet)


def _holding(element: Element, transposed: bool, resident: bool) -> Any:
    """Build `hold(w, at, H, first, rows)`: the memory that M is in, copied there if `resident`."""
    fill, stored = filling(element, transposed), element.store

    def keep(w: Any, at: int, H: int, first: int, rows: int) -> Any:
        weights = cuda.shared.array(0, stored, alignment=16)
        fill(weights, at, w, H, first, rows)
        return weights

    def leave(w: Any, at: int, H: int, first: int, rows: int) -> Any:
        return w

    return inlined(keep if resident else leave)


def _placing(resident: bool) -> Any:
    """Build `place_of(at, low, column, across)`: where a column of the block begins in M."""

    def own(at: Any, low: Any, column: Any, across: Any) -> Any:
        return at + column * spread(across)

    def whole(at: Any, low: Any, column: Any, across: Any) -> Any:
        return (low + column) * across

    return inlined(own if resident else whole)


def _multiplying(element: Element, rows: int, resident: bool) -> Any:
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
        lane, warp = cuda.threadIdx.x % 32, cuda.threadIdx.x // 32
        between = spread(across) if resident else across
        sums = cuda.local.array(count, real)
        x = cuda.local.array(loaded, real)
        w = cuda.local.array(width, real)
        for m in range(count):
            sums[m] = zero
        k = small((split * 32 + lane) * width)
        # No range: by a step that is not a constant, it would divide.
        while k < across:
            for i in range(rows):
                load(x, i * width, exchange, x_at + i * across + k)
            for c in range(tile):
                load_weights(w, 0, weights, own_at + c * between + k)
                for i in range(rows):
                    for p in range(width):
                        sums[i * tile + c] += x[i * width + p] * w[p]
            k = small(k + splits * 32 * width)
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
    """Build `add_up(parts, at, sums, splits)`: the whole of the sum whose first part is there."""
    zero = element.real(0)

    def add_up(parts: Any, at: int, sums: int, splits: int) -> Any:
        total = zero
        for split in range(splits):
            total += parts[at + split * sums]
        return total

    return inlined(add_up)

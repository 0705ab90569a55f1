"""The grid-wide kernels: one launch for all steps, with a grid barrier in each.

    forward    h_t = activation(z_t + W_hh h_{t-1})
    backward   dz_t = (g_t + grad_y_t) activation'(y_t),   g_{t-1} = dz_t W_hh

After Diamos et al. 2016, "Persistent RNNs: Stashing Recurrent Weights On-Chip": a block owns
`columns` hidden units of `slab` sequences in one direction, and keeps their part of W_hh in shared
memory for all steps, or ("stream") reads it in each step if shared memory is too small. Blocks
exchange the state through global memory, which stays in the L2 cache: each step reads one buffer
and writes the other. Warps of a block that read the same elements share them through the L1 cache,
which the barrier invalidates. Launch blocks (ceil(H / columns), D, ceil(B / slab)) cooperatively,
since those of a slab and direction wait for each other; `columns` is a multiple of
`kernels.column_tile`, `slab` of `rows`.

Dynamic shared memory, with Hp = `padded(H)`:

    reals    [2][teams][splits][groups][rows * tile]   parts of the sums over k
    stored   [columns][spread(Hp)]                     M[c][k] = W_hh[j][k] (forward) or W_hh[k][j]
                                                       (backward), where j is the block's column c;
                                                       not for "stream"

Each step computes sum_k x[b][k] M[c][k], `rows` sequences in each of the block's `teams` at a time.
A warp of a team computes `tile` columns of them over one of the `splits` ranges of k; its lanes
read adjacent vectors along k. Shuffles add up the lanes, and one thread for each sum adds up the
splits and does the pointwise part. There are `groups = columns / tile`, and `groups * splits` warps
in a team.

Global memory as in `block_kernel`, and two more buffers, which the caller owns: `exchange`, reals
`[2, D, slabs, slab, Hp]`, uninitialised, aligned to 16 bytes, and `counters`, int64
`[D, slabs, COUNTER_STRIDE]`, zero at launch. For "stream", w_hh_0 and w_hh_1 are M of all columns,
`[x * columns, Hp]` for x blocks, zero from row and column H on, aligned to 16 bytes.
"""

from __future__ import annotations

from typing import Any

from numba import cuda, types

from rnnjit_cuda.cells import Pointwise
from rnnjit_cuda.common import bounds, padded
from rnnjit_cuda.grid_sync import adding, grid_barrier, holding, multiplying, placing, sharing
from rnnjit_cuda.kernels import tile_columns
from rnnjit_cuda.primitives import Element, small


def forward(
    element: Element, cell: Pointwise, rows: int, resident: bool = True
) -> tuple[Any, tuple[Any, ...]]:
    """The forward kernel and its signature.

    `kernel(y, w_hh_0, w_hh_1, h0, h_n, exchange, counters, offsets, T, B, H, columns, splits, slab,
    packed)`: y holds z = x W_ih^T + b and is overwritten by the states; h_n is written. Direction 1
    walks from the last step to the first.
    """
    real, up, down = element.real, element.up, element.down
    tile = tile_columns(rows, element.width)
    ratio = element.real.bitwidth // element.store.bitwidth
    zero, activation = element.real(0), cell.activation
    hold, multiply = holding(element, False, resident), multiplying(element, rows, resident)
    add_up, share_work, place_of = adding(element), sharing(tile), placing(resident)

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
        # In both buffers: in direction 1, sequences that begin later than others read either one.
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
        share, turn, barriers = zero, 0, 0
        # Of the slab: its first row, and how many there are.
        start, size = small(start + first), small(min(size - first, own))
        if row < min(size, last):
            share = up(y[(start + row) * ld + d * H + column])
        while size > 0:
            barriers = small(barriers + 1)
            grid_barrier(counters, barriers)
            step = small(step + 1)
            start_next, size_next = bounds(offsets, step, T, B, packed, d == 0)
            start_next = small(start_next + first)
            size_next = small(max(0, min(size_next - first, own)))
            top = small(0)
            while top < size:
                mine, b = share, small(top + row)
                # The load for the next tiles overlaps with the product of these.
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
    element: Element, cell: Pointwise, rows: int, resident: bool = True
) -> tuple[Any, tuple[Any, ...]]:
    """The backward kernel and its signature.

    `kernel(dz, grad_y, y, w_hh_0, w_hh_1, grad_h_n, grad_h0, exchange, counters, offsets, T, B, H,
    columns, splits, slab, packed, has_grad_y, has_grad_h_n)`: dz and grad_h0 are written; grad_y
    and grad_h_n count as zero, and are not read, if their flag is 0. Direction 0 walks from the
    last step to the first.

    A step's product is the gradient that the next step of the walk starts from. The same thread
    uses it, and so it is not stored.
    """
    real, up, down = element.real, element.up, element.down
    tile = tile_columns(rows, element.width)
    ratio = element.real.bitwidth // element.store.bitwidth
    zero, gradient = element.real(0), cell.gradient
    hold, multiply = holding(element, True, resident), multiplying(element, rows, resident)
    add_up, share_work, place_of = adding(element), sharing(tile), placing(resident)

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
        # Weights from column H on are zero, and the state must be too: 0 * NaN is NaN.
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
        state, above, turn, done, barriers = zero, zero, 0, 0, 0
        # Of the slab: its first row, and how many there are.
        start, size = small(start + first), small(min(size - first, own))
        if row < min(size, last):
            state = up(y[(start + row) * ld + d * H + column])
            if has_grad_y != 0:
                above = up(grad_y[(start + row) * ld + d * H + column])
        # This step of the walk has `size` rows, the previous one had `done`.
        while size > 0 or done > 0:
            if barriers > 0:
                grid_barrier(counters, barriers)
            barriers, step = small(barriers + 1), small(step + 1)
            start_next, size_next = bounds(offsets, step, T, B, packed, d == 1)
            start_next = small(start_next + first)
            size_next = small(max(0, min(size_next - first, own)))
            top = small(0)
            while top < max(size, done):
                h, grad, b = state, above, small(top + row)
                # The loads for the next tiles overlap with the product of these.
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

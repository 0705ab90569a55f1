"""Building blocks of the grid-wide kernels: division of work, the grid barrier, the products."""

from __future__ import annotations

from typing import Any

from numba import cuda

from rnnjit_cuda.common import filling, spread
from rnnjit_cuda.kernels import COUNTER_STRIDE, tile_columns
from rnnjit_cuda.primitives import Element, arrive, arrived, inlined, load, small


def sharing(tile: int) -> Any:
    """Build `share_work(columns, splits)`: which part of the products a thread's warp computes.

    It returns the number of teams, the thread's team, split and group, and its place in the team.
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


def _grid_barrier(counters: Any, times: int) -> None:
    """Wait until all blocks of a slab and direction have reached their `times`-th barrier.

    What they wrote before is visible afterwards.
    """
    cuda.syncthreads()
    if cuda.threadIdx.x == 0:
        index = (cuda.blockIdx.z * cuda.gridDim.y + cuda.blockIdx.y) * COUNTER_STRIDE
        arrive(counters, index)
        while arrived(counters, index) < times * cuda.gridDim.x:
            pass
    cuda.syncthreads()


grid_barrier = inlined(_grid_barrier)


def holding(element: Element, transposed: bool, resident: bool) -> Any:
    """Build `hold(w, at, H, first, rows)`: the memory of M, which is shared if `resident`."""
    fill, stored = filling(element, transposed), element.store

    def keep(w: Any, at: int, H: int, first: int, rows: int) -> Any:
        weights = cuda.shared.array(0, stored, alignment=16)
        fill(weights, at, w, 0, H, first, rows)
        return weights

    def leave(w: Any, at: int, H: int, first: int, rows: int) -> Any:
        return w

    return inlined(keep if resident else leave)


def placing(resident: bool) -> Any:
    """Build `place_of(at, low, column, across)`: the index in M of a column of the block."""

    def own(at: Any, low: Any, column: Any, across: Any) -> Any:
        return at + column * spread(across)

    def whole(at: Any, low: Any, column: Any, across: Any) -> Any:
        return (low + column) * across

    return inlined(own if resident else whole)


def multiplying(element: Element, rows: int, resident: bool) -> Any:
    """Build `multiply(parts, turn, exchange, x_at, weights, own_at, across, split, splits)`.

    It writes sum_k x[i][k] M[c][k] over the warp's split of k to `parts` from `turn` on, of `rows`
    rows of x at `exchange[x_at]` and the `tile` columns of M that begin at `weights[own_at]`. A
    lane reads a vector of each at a time.
    """
    real, width, load_weights = element.real, element.width, element.load
    zero = element.real(0)
    tile = tile_columns(rows, width)
    count, loaded = rows * tile, rows * width
    fold_16, fold_8, fold_4, fold_2, fold_1 = (folding(count, s) for s in range(5))

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
        # Not `range`, which would divide if its step is not a constant.
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


def folding(count: int, stage: int) -> Any:
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


def adding(element: Element) -> Any:
    """Build `add_up(parts, at, sums, splits)`: the total of the sum that begins at `parts[at]`."""
    zero = element.real(0)

    def add_up(parts: Any, at: int, sums: int, splits: int) -> Any:
        total = zero
        for split in range(splits):
            total += parts[at + split * sums]
        return total

    return inlined(add_up)

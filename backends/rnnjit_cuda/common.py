"""Device functions that the persistent kernels are built from."""

from __future__ import annotations

from typing import Any

from numba import cuda

from rnnjit_cuda.kernels import padded as _padded
from rnnjit_cuda.kernels import spread as _spread
from rnnjit_cuda.primitives import Element, inlined

padded, spread = inlined(_padded), inlined(_spread)


def _bounds(offsets: Any, step: int, T: int, B: int, packed: int, onward: bool) -> tuple[int, int]:
    """The first row and the number of rows of a walk's step; 0 rows from step T on.

    The walk visits the time steps from 0 on if `onward`, else from T - 1 down. If `packed` is 0,
    each step has B rows, and `offsets` is not read.
    """
    start, size = 0, 0
    if step < T:
        t = step if onward else T - 1 - step
        if packed != 0:
            start = offsets[t]
            size = offsets[t + 1] - start
        else:
            start, size = t * B, B
    return start, size


bounds = inlined(_bounds)


def filling(element: Element, transposed: bool) -> Any:
    """Build `fill(weights, at, w, w_at, H, first, rows)`, by which a block copies a matrix.

    It writes M `[rows][padded(H)]`, with `spread` between rows, from `weights[at]` on, where
    M[r][c] = w[first + r, c], or w[c, first + r] if `transposed`; zero beyond `w` `[H, H]`, which
    begins at element `w_at`.

    A warp moves 8 rows by 32 columns at a time: 8 loads a lane are in flight together, and a load
    of the warp touches whole sectors of 32 bytes. If transposed, the lanes of a load cover 8 rows
    and 4 columns, which are adjacent in `w` and, because of `spread`, in different banks.
    """
    zero, store = element.store(0), element.store

    def fill(weights: Any, at: int, w: Any, w_at: int, H: int, first: int, rows: int) -> None:
        lane, warp = cuda.threadIdx.x % 32, cuda.threadIdx.x // 32
        warps = cuda.blockDim.x // 32
        across = padded(H)
        between = spread(across)
        pieces = (across + 31) // 32
        held = cuda.local.array(8, store)
        for unit in range(warp, (rows + 7) // 8 * pieces, warps):
            r, c = unit // pieces * 8, unit % pieces * 32
            if transposed:
                r += lane % 8
                c += lane // 8
            else:
                c += lane
            for i in range(8):
                row, column = (r, c + 4 * i) if transposed else (r + i, c)
                held[i] = zero
                if first + row < H and column < H:
                    if transposed:
                        held[i] = w[w_at + column * H + first + row]
                    else:
                        held[i] = w[w_at + (first + row) * H + column]
            for i in range(8):
                row, column = (r, c + 4 * i) if transposed else (r + i, c)
                if row < rows and column < across:
                    weights[at + row * between + column] = held[i]

    return inlined(fill)

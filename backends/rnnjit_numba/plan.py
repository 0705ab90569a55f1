"""How a call is divided between threads: a small cost model, in one place.

No plan changes any bit of a result, so that plans are about time alone.
"""

from __future__ import annotations

from typing import NamedTuple

from rnnjit.codegen.row_slices import one_slice, row_slices, worth_threads
from rnnjit.spec import LayerSpec, Rows

#: Rows that a reduction over all rows takes at a time; fixed, so that its rounding is.
REDUCTION_ROWS = 192

#: Rows that a pass over all rows takes at a time, so that they stay in a core's own cache.
ROW_BLOCK = 64

#: Multiply-adds that a thread does in the time that synchronising with one more takes.
_SYNC_WORK = 16_000
#: Rows whose multiply-adds take as long as reading the weights for them: fewer take no less time.
_READING_ROWS = 3
#: Rows of all steps up to which packing the weights costs more than it saves.
FEW_ROWS = 6
#: Rows that fill the largest register tile.
TILE_ROWS = 8
#: Rows, and batches, whose gradients are summed before the backward pass goes on to the next.
_WINDOW_ROWS, _WINDOW_BATCHES = 768, 4


class Plan(NamedTuple):
    """A division of one layer's work.

    Attributes:
        threads: size of the team.
        slices, slice_rows, stride: of the batch, see `rnnjit.codegen.row_slices.RowSlices`.
        parts: that the hidden features of one slice are divided into, one for a thread; they
            synchronise after each step. What is left of the team does nothing: a smaller team would
            end others of torch's threads.
        hoist: whether the input projection of all steps is computed before the first step.
        direct: whether weights are read as they lie, since packing would not pay.
        tail: steps of fewer rows than this, those at the end of a packed batch, are run as if
            `parts` were all threads.
    """

    threads: int
    slices: int
    slice_rows: int
    stride: int
    parts: int
    hoist: bool
    direct: bool = False
    tail: int = 0


def plan(layer: LayerSpec, rows: Rows, threads: int, vectors: int) -> Plan:
    """The plan for a call.

    Args:
        layer: what the layer is.
        rows: how many rows it has and how they are laid over time.
        threads: the most that may be used.
        vectors: how many vectors hold the hidden features of a row.
    """
    H, D = layer.hidden_size, layer.num_directions
    batch = max(rows.B, 1)
    most = max(1, min(threads // D, vectors))
    few = rows.T * batch <= FEW_ROWS
    whole = one_slice(rows)
    if threads == 1 or not worth_threads(layer, rows):
        return Plan(1, *whole, 1, batch < TILE_ROWS, few)
    inputs = batch * layer.input_size * H

    def by_columns(parts: int) -> float:
        return _step_work(batch, H, parts) + inputs / parts

    parts = min(range(1, most + 1), key=by_columns)
    if few:
        return Plan(threads, *whole, parts if rows.T > 1 else most, False, True)
    cut = row_slices(layer, rows, threads)
    by_rows = _step_work(cut.slice_rows, H, 1) + inputs / -(-threads // D)
    hoist = cut.slice_rows < TILE_ROWS
    if hoist and by_columns(parts) < by_rows:
        return Plan(threads, *whole, parts, True)
    packed = rows.T * batch > rows.N
    tail = _tail(H, threads) if packed and D == 1 and most == threads else 0
    return Plan(threads, *cut, 1, hoist, tail=tail)


def _step_work(batch: int, H: int, parts: int) -> float:
    """Multiply-adds that take as long as a step whose columns `parts` threads compute.

    That is the state's product alone. They synchronise by a word of memory that they increment one
    after the other.
    """
    return max(batch, _READING_ROWS) * H * H / parts + _SYNC_WORK * (parts - 1)


def _tail(H: int, threads: int) -> int:
    """The rows of a step from which on it is better not divided by columns between all threads."""
    alone = _READING_ROWS * H * H
    return next((n for n in range(2 * threads) if _step_work(n, H, threads) >= alone), 2 * threads)


def window(layer: LayerSpec, rows: Rows) -> tuple[int, int]:
    """How many rows of dz a backward pass computes before it sums them, and how many it holds.

    What is left of the rows of the last step, and of those of a reduction's block, is held beside
    a window. Two directions walk the rows from both ends, and so their window is all rows.
    """
    batch = max(rows.B, 1)
    size = max(_WINDOW_ROWS, _WINDOW_BATCHES * batch)
    held = size + max(batch, REDUCTION_ROWS)
    if layer.num_directions == 2 or held >= rows.N:
        return rows.N, rows.N
    return size, held

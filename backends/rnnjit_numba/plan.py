"""How a call is cut up between threads: a small cost model, in one place.

No plan changes any bit of a result, so that plans are about time alone.
"""

from __future__ import annotations

from typing import NamedTuple

from rnnjit.spec import LayerSpec, Rows

#: Rows that a reduction over all rows takes at a time; fixed, so that its rounding is.
REDUCTION_ROWS = 192

#: Rows that a pass over all rows takes at a time, so that they stay in a core's own cache.
ROW_BLOCK = 64

#: Multiply-adds below which a second thread costs more than it saves.
_THREAD_WORK = 100_000
#: Multiply-adds that a thread does while one more meets the others at a step's end.
_MEETING_WORK = 16_000
#: Rows whose multiply-adds take as long as reading the weights for them: fewer take no less time.
_READING_ROWS = 3
#: Rows of all steps up to which packing the weights costs more than it saves.
FEW_ROWS = 6
#: Hidden features from which on rows next to each other share no cache line worth mentioning.
_TURN_FEATURES = 64
#: Rows that fill the largest register tile.
TILE_ROWS = 8
#: Rows, and batches, whose gradients are summed before the backward pass goes on to the next.
_WINDOW_ROWS, _WINDOW_BATCHES = 768, 4


class Plan(NamedTuple):
    """A cut of one layer's work.

    Attributes:
        threads: size of the team.
        slices: parts of the batch, each of which runs the whole time loop on its own.
        slice_rows: rows in each slice but the last.
        every: 1, or the number of slices where these take the rows in turns.
        parts: threads that share the hidden features of one slice, meeting after each step. What is
            left of the team does nothing: a smaller team would end others of torch's threads.
        tail: steps of fewer rows than this, those at the end of a packed batch, are run as by
            `parts` of all threads.
        hoist: whether the input's share of all steps is computed before the first step.
        direct: whether weights are read as they lie, since packing would not pay.
    """

    threads: int
    slices: int
    slice_rows: int
    every: int
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
    work = rows.N * D * H * (layer.input_size + H)
    batch = max(rows.B, 1)
    units = -(-threads // D)
    most = max(1, min(threads // D, vectors))
    few = rows.T * batch <= FEW_ROWS
    if threads == 1 or work < _THREAD_WORK:
        return Plan(1, 1, batch, 1, 1, batch < TILE_ROWS, few)
    inputs = batch * layer.input_size * H

    def shared(parts: int) -> float:
        return _step_work(batch, H, parts) + inputs / parts

    parts = min(range(1, most + 1), key=shared)
    if few:
        return Plan(threads, 1, batch, 1, parts if rows.T > 1 else most, False, True)
    slice_rows = -(-batch // units)
    alone = _step_work(slice_rows, H, 1) + inputs / units
    if slice_rows < TILE_ROWS and shared(parts) < alone:
        return Plan(threads, 1, batch, 1, parts, True)
    slices = -(-batch // slice_rows)
    # Sequences come in the order of their lengths: taken in turns, every step is shared evenly.
    packed = rows.T * batch > rows.N
    turns = slices if packed and H >= _TURN_FEATURES else 1
    tail = _tail(H, threads) if packed and D == 1 and most == threads else 0
    return Plan(
        threads, slices, slice_rows, turns, 1, slice_rows < TILE_ROWS, direct=False, tail=tail
    )


def _step_work(batch: int, H: int, parts: int) -> float:
    """Multiply-adds that take as long as a step of `parts` threads that share its columns.

    That is the state's product alone. They meet at a word of memory which they count up one after
    the other.
    """
    return max(batch, _READING_ROWS) * H * H / parts + _MEETING_WORK * (parts - 1)


def _tail(H: int, threads: int) -> int:
    """The rows of a step from which on it is better not shared by columns among all threads."""
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

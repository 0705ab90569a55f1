"""How a call of a CPU backend is divided between threads: a small cost model, in one place.

Results are the same, bit for bit, whatever the plan, which affects time alone.
"""

from __future__ import annotations

from typing import NamedTuple

from rnnjit.codegen.row_slices import one_slice, recurrent_work, row_slices, worth_team
from rnnjit.spec import LayerSpec, Rows

#: Rows that a reduction over all rows sums at a time; fixed, so that its rounding is fixed.
REDUCTION_ROWS = 192

#: Columns of dz that a reduction packs at a time: a multiple of the rows of every tile, so that a
#: packed block stays within a core's second-level cache.
SEGMENT = 1032

#: Rows that a pass over all rows takes at a time, so that they stay in a core's own cache.
ROW_BLOCK = 64

#: Rows whose pre-activations a step computes at a time: a multiple of the rows of most tiles.
Z_ROWS = 72

#: The cost of synchronising with one more thread, in multiply-adds of a thread.
_SYNC_WORK = 16_000
#: Up to this many rows, a step is bound by reading the weights: fewer rows take no less time.
_READING_ROWS = 3
#: Up to this many rows, a forward pass of one step does not gain by packing the weights, see
#: `rows_in_place`: with vectors of `_WIDE` bytes; with narrower ones on one thread, and on several,
#: which divide the reading between them better than the packing.
_WIDE, _FEW_ROWS_WIDE, _FEW_ROWS_ALONE, _FEW_ROWS_SHARED = 64, 6, 8, 16
#: Up to this many rows over all steps, a backward pass does not gain, whose products transpose
#: nothing.
_FEW_ROWS_BACKWARD = 64
#: Rows that fill the largest register tile.
TILE_ROWS = 8
#: A window of the backward pass (see `window`) has at least this many rows, and at least the rows
#: of this many steps of the whole batch.
_WINDOW_ROWS, _WINDOW_BATCHES = 768, 4


class Plan(NamedTuple):
    """A division of one layer's work.

    Attributes:
        threads: size of the OpenMP team that runs the kernel.
        slices, slice_rows, stride: of the batch, see `rnnjit.codegen.row_slices.RowSlices`.
        parts: into how many parts the hidden features of a slice are divided. One thread computes
            each part, and they synchronise after each step. If there are fewer parts than threads,
            the others idle: for a smaller team OpenMP would end some of torch's threads.
        hoist: whether the input projection of all steps is computed before the first step.
        direct: whether weights are read in place, since copying them into tile order would not pay.
        tail: steps of fewer rows than this, at the end of a packed batch, are divided by hidden
            features between all threads.
    """

    threads: int
    slices: int
    slice_rows: int
    stride: int
    parts: int
    hoist: bool
    direct: bool = False
    tail: int = 0


def rows_in_place(vector_bytes: int, threads: int) -> int:
    """The most rows of a single step for which a forward pass reads the weights in place.

    The tiles that do so transpose the weights, and the more lanes, the more that costs.
    """
    if vector_bytes >= _WIDE:
        return _FEW_ROWS_WIDE
    return _FEW_ROWS_SHARED if threads > 1 else _FEW_ROWS_ALONE


def plan(
    layer: LayerSpec,
    rows: Rows,
    threads: int,
    vectors: int,
    shared: int | None = None,
    *,
    in_place: int = 0,
) -> Plan:
    """The plan for a call of the forward or the backward kernel of a CPU backend.

    Args:
        layer: what the layer is.
        rows: how many rows it has and how they are divided into time steps.
        threads: the most that may be used.
        vectors: how many vectors hold the hidden features of a row.
        shared: the multiply-adds of a backward pass beside those of a forward pass, which all
            threads share evenly; None for a forward pass.
        in_place: the most rows of a single step whose forward pass reads weights in place (see
            `rows_in_place`), or 0 if the kernels cannot, in either pass.
    """
    if shared is None:
        shared, few = 0, rows.T == 1 and in_place >= rows.B
    else:
        few = rows.T * max(rows.B, 1) <= _FEW_ROWS_BACKWARD
    few = few and in_place > 0
    step_rows, weights = _mean_rows(rows, rows.B), recurrent_work(layer)
    alone = Plan(1, *one_slice(rows), 1, step_rows < TILE_ROWS, few)
    if threads == 1:
        return alone
    cut, step = _team(layer, rows, threads, vectors, few)
    own = layer.num_directions * (_step_work(step_rows, weights, 1) + _inputs(layer, step_rows))
    saved = (own - step) * rows.N / step_rows + shared * (threads - 1) / threads
    return cut if worth_team(saved) else alone


def _team(
    layer: LayerSpec, rows: Rows, threads: int, vectors: int, few: bool
) -> tuple[Plan, float]:
    """The best plan for several threads, and the cost of a step of the whole batch by it."""
    weights, D, step_rows = recurrent_work(layer), layer.num_directions, _mean_rows(rows, rows.B)
    # All hidden units of a row have to be known before its projection.
    most = 1 if layer.proj_size else max(1, min(threads // D, vectors))
    whole = one_slice(rows)
    # Costs are those of one time step, in multiply-adds of a thread. Of the input projection:
    inputs = _inputs(layer, step_rows)

    def by_columns(parts: int) -> float:
        return _step_work(step_rows, weights, parts) + inputs / parts

    parts = min(range(1, most + 1), key=by_columns)
    if few:
        parts = parts if rows.T > 1 else most
        return Plan(threads, *whole, parts, False, True), by_columns(parts)
    cut = row_slices(layer, rows, threads)
    slice_rows = _mean_rows(rows, cut.slice_rows)
    by_rows = _step_work(slice_rows, weights, 1) + inputs / -(-threads // D)
    hoist = slice_rows < TILE_ROWS
    if hoist and by_columns(parts) < by_rows:
        return Plan(threads, *whole, parts, True), by_columns(parts)
    packed = rows.T * rows.B > rows.N
    tail = _tail(weights, threads) if packed and D == 1 and most == threads else 0
    return Plan(threads, *cut, 1, hoist, tail=tail), by_rows


def _mean_rows(rows: Rows, sequences: int) -> int:
    """The mean rows of a step that some of the sequences have, rounded up; at least 1.

    The steps of a packed batch have ever fewer rows, and the more of them, the more a step costs
    that reads all weights for few rows.
    """
    return max(1, -(-sequences * rows.N // max(rows.T * rows.B, 1)))


def _inputs(layer: LayerSpec, step_rows: int) -> int:
    """Multiply-adds of the input projection of a step in one direction."""
    return step_rows * layer.input_size * len(layer.cell.gates) * layer.hidden_size


def _step_work(step_rows: int, weights: int, parts: int) -> float:
    """The cost, in multiply-adds, of a step whose hidden features `parts` threads divide.

    It counts the product with the state alone, not the input projection. The cost of synchronising
    grows with the threads, which increment one word of memory in turn.
    """
    return max(step_rows, _READING_ROWS) * weights / parts + _SYNC_WORK * (parts - 1)


def _tail(weights: int, threads: int) -> int:
    """The fewest rows of a step for which dividing its columns between all threads does not pay."""
    alone, few = _READING_ROWS * weights, 2 * threads
    return next((n for n in range(few) if _step_work(n, weights, threads) >= alone), few)


def window(layer: LayerSpec, rows: Rows) -> tuple[int, int]:
    """How many rows of dz a backward pass computes before it sums them, and how many it holds.

    dz is the gradient of the pre-activations. Besides a window it holds the last rows computed:
    those of the last step, which the next needs, or those of an incomplete block of the reductions,
    whichever are more. Two directions traverse the rows from opposite ends, and so their window is
    all rows.
    """
    batch = max(rows.B, 1)
    size = max(_WINDOW_ROWS, _WINDOW_BATCHES * batch)
    held = size + max(batch, REDUCTION_ROWS)
    if layer.num_directions == 2 or held >= rows.N:
        return rows.N, rows.N
    return size, held

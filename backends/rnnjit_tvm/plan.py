"""How a call is partitioned between threads, and what goes step by step: a small cost model."""

from __future__ import annotations

from typing import NamedTuple

from rnnjit.spec import LayerSpec, Rows

#: Rows that a reduction over all rows takes at a time; fixed, so that its rounding is.
REDUCTION_ROWS = 192

#: Multiply-adds below which a second thread costs more than it saves.
_THREAD_WORK = 100_000
#: Hidden features from which on false sharing between neighbouring rows does not matter.
_STRIDED_FEATURES = 64
#: Rows that fill the highest register tile.
_TILE_ROWS = 8


class Plan(NamedTuple):
    """A partition of one layer's work.

    Attributes:
        threads: size of the team.
        slices: parts of the batch, each of which runs the whole time loop on its own.
        slice_rows: rows in each slice but the last.
        every: 1, or the number of slices where each takes one row of every so many.
        hoist: whether the input projection of all steps is computed before the first, since a
            step has too few rows to fill a tile.
    """

    threads: int
    slices: int
    slice_rows: int
    every: int
    hoist: bool


def plan(layer: LayerSpec, rows: Rows, threads: int) -> Plan:
    """The plan for a call.

    Args:
        layer: what the layer is.
        rows: how many rows it has and how they are laid over time.
        threads: the most that may be used.
    """
    H, D = layer.hidden_size, layer.num_directions
    batch = max(rows.B, 1)
    if threads == 1 or rows.N * D * H * (layer.input_size + H) < _THREAD_WORK:
        return Plan(1, 1, batch, 1, batch < _TILE_ROWS)
    slice_rows = -(-batch // -(-threads // D))
    slices = -(-batch // slice_rows)
    # Sequences come in the order of their lengths: strided slices are even in every step.
    every = slices if rows.T * batch > rows.N and H >= _STRIDED_FEATURES else 1
    return Plan(threads, slices, slice_rows, every, slice_rows < _TILE_ROWS)

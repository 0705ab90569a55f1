"""How a call is divided between threads, and whether the input projection is hoisted."""

from __future__ import annotations

from typing import NamedTuple

from rnnjit.codegen.row_slices import one_slice, row_slices, worth_threads
from rnnjit.spec import LayerSpec, Rows

#: Rows that a reduction over all rows sums at a time; fixed, so that its rounding is fixed.
REDUCTION_ROWS = 192

#: Rows that fill the register tile with the most rows.
_TILE_ROWS = 8


class Plan(NamedTuple):
    """A division of one layer's work.

    Attributes:
        threads: size of the team.
        slices, slice_rows, stride: of the batch, see `rnnjit.codegen.row_slices.RowSlices`.
        hoist: whether the input projection of all steps is computed before the first, since a
            step has too few rows to fill a tile.
    """

    threads: int
    slices: int
    slice_rows: int
    stride: int
    hoist: bool


def plan(layer: LayerSpec, rows: Rows, threads: int) -> Plan:
    """The plan for a call.

    Args:
        layer: what the layer is.
        rows: how many rows it has and how they are divided into time steps.
        threads: the most that may be used.
    """
    if threads == 1 or not worth_threads(layer, rows):
        threads, cut = 1, one_slice(rows)
    else:
        cut = row_slices(layer, rows, threads)
    return Plan(threads, *cut, cut.slice_rows < _TILE_ROWS)

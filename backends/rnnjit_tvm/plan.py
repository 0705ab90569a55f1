"""How a call is divided between threads, and whether the input projection is hoisted."""

from __future__ import annotations

from typing import NamedTuple

from rnnjit.codegen.row_slices import RowSlices, one_slice, row_slices, worth_team
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


def plan(layer: LayerSpec, rows: Rows, threads: int, shared: int = 0) -> Plan:
    """The plan for a call.

    Args:
        layer: what the layer is.
        rows: how many rows it has and how they are divided into time steps.
        threads: the most that may be used.
        shared: multiply-adds beside those of a forward pass, which all threads share evenly.
    """
    cut = row_slices(layer, rows, threads)
    hoist = cut.slice_rows < _TILE_ROWS
    if not worth_team(_saved(layer, rows, threads, cut, hoist, shared)):
        threads, cut = 1, one_slice(rows)
    return Plan(threads, *cut, cut.slice_rows < _TILE_ROWS)


def _saved(
    layer: LayerSpec, rows: Rows, threads: int, cut: RowSlices, hoist: bool, shared: int
) -> float:
    """Multiply-adds that a team takes off the calling thread."""
    all_threads = (threads - 1) / threads
    units = layer.num_directions * cut.slices
    by_slices = 1 - -(-units // threads) / units
    work = rows.N * layer.num_directions * layer.hidden_size
    projected = work * layer.input_size * (all_threads if hoist else by_slices)
    return projected + work * layer.hidden_size * by_slices + shared * all_threads

"""Which register tiles a call uses: from a table by processor, then as measured on this machine.

A call of enough work has the tiles measured if that was not done on this machine before. The rates
are kept beside the object code. Calls of less work are planned by the table, as are programs for
other machines. The environment variable RNNJIT_TILES forces a choice. No choice changes a bit.
"""

from __future__ import annotations

import json
import os
from typing import NamedTuple

import torch

from rnnjit import LayerSpec, Rows
from rnnjit.codegen import Isa
from rnnjit.codegen.kernel import Kind
from rnnjit.codegen.row_slices import multiply_adds
from rnnjit.runtime import object_cache
from rnnjit.runtime.compile_once import CompileOnce
from rnnjit_numba.amx_check import kernel_isa
from rnnjit_numba.library import library
from rnnjit_numba.tile_measurement import measure
from rnnjit_numba.tile_shapes import (
    TileShape,
    Tiling,
    all_tilings,
    outer_candidates,
    small_shapes,
    tilings,
)
from rnnjit_numba.tile_table import Rates, start_rates

TILES_VARIABLE = "RNNJIT_TILES"
#: Multiply-adds of a forward pass from which on a call is worth a measurement: some milliseconds.
_COMPUTE_BOUND = 100_000_000
#: A measured rate must be so many times better than that of the table's choice to replace it: a
#: busy machine makes short measurements differ by as much.
_MARGIN = 1.06
#: The number of rows by which tiles are compared where it is not known: a multiple of theirs.
MANY = 5040
#: Of int8 products, which have tiles of their own: each takes one vector of columns.
_INT8 = Tiling(TileShape(1, 1))


class Forced(NamedTuple):
    """What RNNJIT_TILES asks for; None where it leaves the choice."""

    tiling: Tiling | None
    outer: TileShape | None


def tiling(kind: Kind, layer: LayerSpec, rows: Rows, slice_rows: int) -> Tiling:
    """The tiling of a layer's products, for slices of so many of the rows of a step.

    Raises:
        ValueError: RNNJIT_TILES asks for what does not exist.
    """
    if kind.quantized:
        return _INT8
    # Not `host_isa`, which takes LLVM's lock: a child forked meanwhile would wait for it for ever.
    isa = library(kind).isa
    return forced(isa).tiling or best_tiling(isa, _rates(kind, layer, rows), slice_rows)


def outer_tile(kind: Kind, layer: LayerSpec, rows: Rows) -> TileShape:
    """The tile of a layer's sums over all rows.

    Raises:
        ValueError: RNNJIT_TILES asks for what does not exist.
    """
    isa = library(kind).isa
    return forced(isa).outer or best_outer(isa, _rates(kind, layer, rows))


def program_tiling(isa: Isa) -> Tiling:
    """The tiling of a program for a processor that need not be this machine's."""
    return best_tiling(isa, None, MANY)


def best_tiling(isa: Isa, rates: Rates | None, slice_rows: int) -> Tiling:
    """The tiling that takes the least time for some rows, by the table and by measured rates.

    Of several that cut these rows alike it is the one that takes the least time for many rows: a
    call also has products of the rows of all steps, such as grad_x.
    """
    choices, table = tilings(isa), start_rates(isa).tiles

    def least(rates: dict[Tiling, float]) -> Tiling:
        return min(choices, key=lambda one: [_cost(isa, rates, one, n) for n in (slice_rows, MANY)])

    first = least(table)
    if rates is None:
        return first
    best = least(rates.tiles)
    gains = [
        _cost(isa, rates.tiles, first, n) / _cost(isa, rates.tiles, best, n)
        for n in (slice_rows, MANY)
    ]
    return best if max(gains) > _MARGIN else first


def best_outer(isa: Isa, rates: Rates | None) -> TileShape:
    """The tile of sums of outer products, by the table and by measured rates."""
    table = start_rates(isa).outer
    first = max(outer_candidates(isa), key=table.__getitem__)
    if rates is None:
        return first
    best = max(rates.outer, key=rates.outer.__getitem__)
    return best if rates.outer[best] > _MARGIN * rates.outer[first] else first


def _cost(isa: Isa, rates: dict[Tiling, float], choice: Tiling, rows: int) -> float:
    """The relative time of some rows that are cut as the kernels do."""
    cost, rest = 0.0, rows
    for shape in (choice.shape, *small_shapes(isa)):
        used = choice if shape == choice.shape else Tiling(shape)
        bands, rest = divmod(rest, shape.rows)
        cost += bands * shape.rows / rates[used]
    return cost


def forced(isa: Isa) -> Forced:
    """What the environment variable RNNJIT_TILES asks for: `6x4`, `6x4/128` or `6x4/128,8x3`.

    The parts are the tile of products, its block of k, and the tile of sums of outer products.

    Raises:
        ValueError: it has another form, or a tile is not one of the candidates.
    """
    given = os.environ.get(TILES_VARIABLE, "").strip()
    if not given:
        return Forced(None, None)
    tile, _, outer = given.partition(",")
    tiles = {str(tiling): tiling for tiling in tilings(isa)}
    outers = {str(shape): shape for shape in outer_candidates(isa)}
    if tile not in tiles or (outer and outer not in outers):
        raise ValueError(
            f"{TILES_VARIABLE} must be TILE or TILE,OUTER, with a TILE of {', '.join(tiles)} and "
            f"an OUTER of {', '.join(outers)} on this machine, got {given!r}"
        )
    return Forced(tiles[tile], outers.get(outer))


def known_rates(isa: Isa, dtype: torch.dtype) -> Rates | None:
    """The rates that were measured on this machine before, or None."""
    kept = object_cache.fetch(_key(isa, dtype), "tiles")
    try:
        return None if kept is None else _from_json(isa, json.loads(kept))
    except (ValueError, LookupError, TypeError):
        return None


def described(dtype: torch.dtype) -> str:
    """Which tiles many rows are cut into, for tensors of a dtype, and by what they are chosen.

    It measures nothing.
    """
    isa = kernel_isa(dtype)
    try:
        wanted = forced(isa)
    except ValueError as error:
        return str(error)
    rates = known_rates(isa, dtype)
    tile = wanted.tiling or best_tiling(isa, rates, MANY)
    outer = wanted.outer or best_outer(isa, rates)
    why = f"{TILES_VARIABLE}, " if wanted.tiling else ""
    if rates is None:
        why += f"not measured; the table for {isa.cpu}"
    else:
        why += f"measured: {rates.tiles[tile]:.0f} and {rates.outer[outer]:.0f} GFLOP/s a thread"
    # Tile registers have one shape.
    shape = "16x16 in tile registers" if isa.amx else str(tile)
    return f"{shape}, for sums {outer} ({why})"


def _rates(kind: Kind, layer: LayerSpec, rows: Rows) -> Rates | None:
    """The measured rates for a call, or None if it does too little work for a measurement."""
    # Rates are measured of both passes.
    measured = kind.has_backward and multiply_adds(layer, rows) >= _COMPUTE_BOUND
    return measured_rates(kind) if measured else None


@CompileOnce
def measured_rates(kind: Kind) -> Rates:
    """The rates of this machine: as they were kept, or measured now."""
    isa = library(kind).isa
    found = known_rates(isa, kind.dtype)
    if found is None:
        found = measure(kind)
        object_cache.keep(_key(isa, kind.dtype), json.dumps(_as_json(found)).encode(), "tiles")
    return found


def _key(isa: Isa, dtype: torch.dtype) -> str:
    return object_cache.name_of(isa, dtype, "tiles", files=(__file__,))


def _as_json(rates: Rates) -> dict[str, dict[str, float]]:
    return {
        "tiles": {str(tile): rate for tile, rate in rates.tiles.items()},
        "outer": {str(shape): rate for shape, rate in rates.outer.items()},
    }


def _from_json(isa: Isa, found: dict[str, dict[str, float]]) -> Rates:
    """Rates from JSON.

    Raises:
        LookupError: rates of some tiles are missing.
        ValueError: one is not positive.
    """
    rates = Rates(
        {tile: float(found["tiles"][str(tile)]) for tile in all_tilings(isa)},
        {shape: float(found["outer"][str(shape)]) for shape in outer_candidates(isa)},
    )
    if not all(0 < rate < float("inf") for each in rates for rate in each.values()):
        raise ValueError("a rate is not positive")
    return rates

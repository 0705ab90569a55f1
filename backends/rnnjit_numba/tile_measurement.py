"""Measures the rate of every register tile on this machine, by the kernels themselves."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import partial
from time import perf_counter
from typing import TypeVar

import torch
from torch import Tensor

from rnnjit import LayerSpec, Needs, Rows
from rnnjit.backend import States
from rnnjit.codegen import backward_call, forward_call
from rnnjit.codegen.kernel import Kind
from rnnjit.codegen.plan import REDUCTION_ROWS, Plan
from rnnjit.codegen.row_slices import multiply_adds, one_slice
from rnnjit_numba import recipes
from rnnjit_numba.arguments import BACKWARD_FIELDS, FIELDS
from rnnjit_numba.library import library
from rnnjit_numba.recipes import places
from rnnjit_numba.tile_shapes import (
    TileShape,
    Tiling,
    all_tilings,
    outer_candidates,
    small_shapes,
)
from rnnjit_numba.tile_table import Rates

#: Seconds that the rounds of a measurement may take, and the fewest of them.
_SECONDS, _ROUNDS = 0.15, 2
#: The sum takes about half of the measured backward pass; less than this share of it is noise.
_LEAST_SHARE = 0.3
#: The measured layer: features, the square root of the size of W_hh, steps and about the rows of
#: one. Its weights exceed a second-level cache, as those of layers do for which the choice matters
#: most: of weights that stay in that cache all tiles are about as fast. The measured sum has more
#: steps and less weights, so that it is not much of the time.
_I, _SIZE, _T, _ROWS = 64, 768, 1, 96
_SUM_SIZE, _SUM_T = 384, 3
K = TypeVar("K", bound=Hashable)


def measure(kind: Kind, steps: int = _T, seconds: float = _SECONDS) -> Rates:
    """Measure all tiles in interleaved rounds.

    Other programs only ever add to a time, so the least of each tile's times counts. By default it
    takes less than 0.2 s on a core of some 50 GFLOP/s.

    Args:
        kind: of the kernels.
        steps: of the measured forward passes. The rates contain the packing of the weights, once in
            a pass, and the cell's step.
        seconds: that the rounds may take; there are two at least.
    """
    isa = library(kind).isa
    tiled, outer = all_tilings(isa), outer_candidates(isa)
    found = _least(
        {
            **{tiling: _product(kind, tiling, steps) for tiling in tiled},
            **{shape: _sum(kind, shape, on=True) for shape in outer},
            None: _sum(kind, outer[0], on=False),
        },
        seconds,
    )
    layer = _layer(kind, _SIZE)
    rates = {
        tiling: 2e-9 * multiply_adds(layer, _rows(tiling.shape, steps)) / found[tiling]
        for tiling in tiled
    }
    # What the sum adds to a backward pass without it, whose time no tile of sums changes.
    rest = min(found[None], (1 - _LEAST_SHARE) * min(found[shape] for shape in outer))
    work = 2e-9 * REDUCTION_ROWS * _layer(kind, _SUM_SIZE).weight_shapes[1].numel()
    return Rates(rates, {shape: work / (found[shape] - rest) for shape in outer})


def _least(calls: dict[K, Callable[[], object]], seconds: float) -> dict[K, float]:
    """The least seconds of each call, of rounds that take `seconds`."""
    found = dict.fromkeys(calls, float("inf"))
    start, rounds = perf_counter(), 0
    while rounds < _ROUNDS or perf_counter() - start < seconds:
        for key, call in calls.items():
            before = perf_counter()
            call()
            found[key] = min(found[key], perf_counter() - before)
        rounds += 1
    return found


def _layer(kind: Kind, size: int) -> LayerSpec:
    """The measured layer, of about size^2 weights in W_hh for every number of gates."""
    hidden = round(size / len(kind.cell.gates) ** 0.5 / 32) * 32
    return LayerSpec(kind.cell, _I, hidden, num_directions=1, bias=False)


def _rows(shape: TileShape, steps: int) -> Rows:
    """Rows of a batch that tiles of one shape cut without rest: about as many for every shape.

    The packing of the weights, which is a part of the time, then counts alike for all.
    """
    batch = round(_ROWS / shape.rows) * shape.rows
    return Rows(steps, batch, steps * batch)


def _plan(rows: Rows) -> Plan:
    """One thread, which takes the whole batch at once."""
    return Plan(1, *one_slice(rows), parts=1, hoist=False)


def _product(kind: Kind, tiling: Tiling, steps: int) -> Callable[[], object]:
    """A forward pass by one tile."""
    layer, rows = _layer(kind, _SIZE), _rows(tiling.shape, steps)
    recipe = recipes.forward(kind, layer, rows, _plan(rows), tiling)
    call = forward_call.bound(recipe, FIELDS, layer, kind.itemsize)
    x, hx, weights = _inputs(kind, layer, rows)
    return partial(forward_call.forward, call, layer, x, hx, weights, None, False)


def _sum(kind: Kind, shape: TileShape, on: bool) -> Callable[[], object]:
    """A backward pass with dW_hh, or without it if `on` is false."""
    layer = _layer(kind, _SUM_SIZE)
    rows = Rows(_SUM_T, REDUCTION_ROWS // _SUM_T, REDUCTION_ROWS)
    tiling, size = Tiling(small_shapes(library(kind).isa)[0]), kind.itemsize
    plan = _plan(rows)
    record = recipes.forward(kind, layer, rows, plan, tiling)
    call = forward_call.bound(record, FIELDS, layer, size)
    x, hx, weights = _inputs(kind, layer, rows)
    y, _, saved, *_ = forward_call.forward(call, layer, x, hx, weights, None, True)
    recipe = recipes.backward(kind, layer, rows, plan, tiling, shape)
    needs = Needs(False, (False,) * len(hx), (False, on))
    gradients = backward_call.bound(
        *(recipe, BACKWARD_FIELDS, recipe.scratch, size),
        *(places(recipe, needs.weights[1]), layer, rows.N, needs),
    )
    return partial(gradients, x, hx, weights, y, saved, y, (None,) * len(hx), (), None)


def _inputs(kind: Kind, layer: LayerSpec, rows: Rows) -> tuple[Tensor, States, tuple[Tensor, ...]]:
    """x, the states and the weights of a call."""
    x = _ones(kind, rows.N, layer.input_size)
    hx = tuple(_ones(kind, 1, rows.B, size) for size in layer.state_sizes)
    return x, hx, tuple(_ones(kind, *shape) for shape in layer.weight_shapes)


def _ones(kind: Kind, *shape: int) -> Tensor:
    """Numbers with which no step overflows or becomes subnormal."""
    return torch.full(shape, 1e-2, dtype=kind.dtype, device="cpu")

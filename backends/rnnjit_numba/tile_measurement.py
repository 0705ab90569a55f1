"""Measures the rate of every register tile on this machine, by the kernels themselves."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import partial
from time import perf_counter
from typing import TypeVar

import torch
from torch import Tensor

from rnnjit import LayerSpec, Rows
from rnnjit.codegen import forward_call
from rnnjit.codegen.kernel import Kind
from rnnjit.codegen.row_slices import multiply_adds, one_slice
from rnnjit_numba import recipes
from rnnjit_numba.arguments import BackwardArguments, ForwardArguments
from rnnjit_numba.library import library
from rnnjit_numba.plan import REDUCTION_ROWS, Plan
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
#: The measured layer. Its weights take a good part of a second-level cache, as those of layers do
#: for which the choice matters, and a round of all tiles takes some 20 ms.
_I, _H, _T, _ROWS = 64, 384, 3, 48
_F = ForwardArguments(*range(len(ForwardArguments._fields)))
_B = BackwardArguments(*range(len(BackwardArguments._fields)))
_FIELDS = forward_call.ForwardFields(_F.N, _F.x, _F.sizes, _F.scratch)
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
    layer = _layer(kind)
    rates = {
        tiling: 2e-9 * multiply_adds(layer, _rows(tiling.shape, steps)) / found[tiling]
        for tiling in tiled
    }
    # What the sum adds to a backward pass without it, whose time no tile of sums changes.
    rest = min(found[None], (1 - _LEAST_SHARE) * min(found[shape] for shape in outer))
    work = 2e-9 * REDUCTION_ROWS * _H * _H
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


def _layer(kind: Kind) -> LayerSpec:
    return LayerSpec(kind.cell, _I, _H, num_directions=1, bias=False)


def _rows(shape: TileShape, steps: int) -> Rows:
    """Rows of a batch that tiles of one shape cut without rest."""
    batch = -(-_ROWS // shape.rows) * shape.rows
    return Rows(steps, batch, steps * batch)


def _plan(rows: Rows) -> Plan:
    """One thread, which takes the whole batch at once."""
    return Plan(1, *one_slice(rows), parts=1, hoist=False)


def _product(kind: Kind, tiling: Tiling, steps: int) -> Callable[[], object]:
    """A forward pass by one tile."""
    layer, rows = _layer(kind), _rows(tiling.shape, steps)
    recipe = recipes.forward(kind, layer, rows, _plan(rows), tiling)
    x, h0 = _ones(kind, rows.N, _I), _ones(kind, 1, rows.B, _H)
    weights = _ones(kind, _H, _I), _ones(kind, _H, _H)
    return partial(forward_call.forward, recipe, _FIELDS, layer, x, h0, weights, None)


def _sum(kind: Kind, shape: TileShape, on: bool) -> Callable[[], object]:
    """A backward pass with dW_hh, or without it if `on` is false."""
    layer, rows = _layer(kind), Rows(_T, REDUCTION_ROWS // _T, REDUCTION_ROWS)
    tiling = Tiling(small_shapes(library(kind).isa)[0])
    recipe = recipes.backward(kind, layer, rows, _plan(rows), tiling, shape)
    dz, before, reduction = recipe.parts
    y, grad_y = _ones(kind, rows.N, _H), _ones(kind, rows.N, _H)
    h0, w_hh, to = _ones(kind, rows.B, _H), _ones(kind, _H, _H), _ones(kind, _H, _H)
    scratch = y.new_empty(recipe.scratch)
    block, start = recipe.block[:], scratch.data_ptr()
    block[_B.y], block[_B.grad_y], block[_B.h0] = y.data_ptr(), grad_y.data_ptr(), h0.data_ptr()
    block[_B.w_hh_0], block[_B.scratch] = w_hh.data_ptr(), start
    block[_B.dz_buffer], block[_B.reduction] = start + dz, start + reduction
    if on:
        block[_B.before], block[_B.grad_w_hh_0] = start + before, to.data_ptr()

    def call(*held: Tensor) -> None:
        recipe.kernel(block, 1)

    return partial(call, y, grad_y, h0, w_hh, to, scratch)


def _ones(kind: Kind, *shape: int) -> Tensor:
    """Numbers with which no step overflows or becomes subnormal."""
    dtype = torch.float32 if kind.bits == 32 else torch.float64
    return torch.full(shape, 1e-2, dtype=dtype, device="cpu")

"""From tensors to argument blocks: allocates, plans, and calls the kernels."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from rnnjit import LayerGrads, LayerOutput, LayerSpec, Needs, Rows
from rnnjit.backend import Shortcut, Training
from rnnjit.codegen import backward_call, forward_call
from rnnjit.codegen.backward_call import BackwardCall, BackwardFields
from rnnjit.codegen.forward_call import ForwardFields, Recipe
from rnnjit.codegen.kernel import Kind
from rnnjit.codegen.row_slices import alike
from rnnjit.runtime.openmp import most_threads
from rnnjit_numba import recipes, tile_choice
from rnnjit_numba.arguments import BackwardArguments, ForwardArguments

_F = ForwardArguments(*range(len(ForwardArguments._fields)))
_B = BackwardArguments(*range(len(BackwardArguments._fields)))
FIELDS = ForwardFields(_F.N, _F.x, _F.sizes, _F.scratch)
_FIELDS = BackwardFields(_B.x, _B.grad_x, _B.sizes)


def forward(
    layer: LayerSpec, rows: Rows, x: Tensor, h0: Tensor, weights: Sequence[Tensor]
) -> LayerOutput:
    """`Backend.forward` for cells with one state."""
    T, B, N, sizes = rows if rows.batch_sizes is None else alike(rows)
    threads = most_threads(torch.get_num_threads())
    recipe = forward_recipe(x.element_size(), layer, T, B, N, threads)
    return forward_call.forward(recipe, FIELDS, layer, x, h0, weights, sizes)


def shortcut(
    size: int, layers: Sequence[LayerSpec], rows: Rows, y_shape: tuple[int, int, int]
) -> Shortcut:
    """`Backend.shortcut` for elements of `size` bytes."""
    T, B, N, _ = rows
    threads = most_threads(torch.get_num_threads())
    recipes = [forward_recipe(size, layer, T, B, N, threads) for layer in layers]
    return forward_call.shortcut(recipes, FIELDS, layers, B, size, y_shape)


def training(
    size: int, layer: LayerSpec, rows: Rows, needs: Needs, y_shape: tuple[int, int, int]
) -> Training:
    """`Backend.training` for elements of `size` bytes."""
    T, B, N, _ = rows
    threads = most_threads(torch.get_num_threads())
    gradients = _backward_call(size, layer, T, B, N, threads, needs)
    return backward_call.training(shortcut(size, (layer,), rows, y_shape), gradients)


def backward(
    layer: LayerSpec,
    rows: Rows,
    x: Tensor,
    h0: Tensor,
    weights: Sequence[Tensor],
    y: Tensor,
    grad_y: Tensor | None,
    grad_h_n: Tensor | None,
    needs: Needs,
) -> LayerGrads:
    """`Backend.backward` for cells with one state."""
    T, B, N, sizes = rows
    threads = most_threads(torch.get_num_threads())
    call = _backward_call(x.element_size(), layer, T, B, N, threads, needs)
    held = [w.contiguous() for w in weights]
    return call(x, h0, held, y, grad_y, grad_h_n, sizes)


@lru_cache(maxsize=1024)
def _backward_call(
    size: int, layer: LayerSpec, T: int, B: int, N: int, threads: int, needs: Needs
) -> BackwardCall:
    """How a layer's gradients are computed, for rows of such sizes."""
    recipe = backward_recipe(size, layer, T, B, N, threads)
    dz, before, reduction = recipe.parts
    places = [(_B.scratch, 0), (_B.dz_buffer, dz), (_B.reduction, reduction)]
    if any(needs.weights[1 :: layer.weights_per_direction]):
        places.append((_B.before, before))
    return backward_call.bound(recipe, _FIELDS, recipe.scratch, size, places, layer, N, needs)


@lru_cache(maxsize=1024)
def forward_recipe(size: int, layer: LayerSpec, T: int, B: int, N: int, threads: int) -> Recipe:
    """How a layer's forward kernel is called for elements of `size` bytes, on at most `threads`."""
    kind, rows = Kind(8 * size, layer.cell), Rows(T, B, N)
    cut = recipes.forward_plan(kind, layer, rows, threads)
    tiling = tile_choice.tiling(kind, layer, rows, cut.slice_rows)
    return recipes.forward(kind, layer, rows, cut, tiling)


@lru_cache(maxsize=1024)
def backward_recipe(size: int, layer: LayerSpec, T: int, B: int, N: int, threads: int) -> Recipe:
    """As `forward_recipe`, backward; `parts` are the offsets of dz, `before` and the reductions."""
    kind, rows = Kind(8 * size, layer.cell), Rows(T, B, N)
    cut = recipes.backward_plan(kind, layer, rows, threads)
    tiling = tile_choice.tiling(kind, layer, rows, cut.slice_rows)
    outer = tile_choice.outer_tile(kind, layer, rows)
    return recipes.backward(kind, layer, rows, cut, tiling, outer)

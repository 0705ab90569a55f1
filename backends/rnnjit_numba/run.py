"""From tensors to argument blocks: allocates, plans, and calls the kernels."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from rnnjit import LayerGrads, LayerOutput, LayerSpec, Needs, Rows
from rnnjit.backend import Shortcut, States, Training
from rnnjit.codegen import backward_call, forward_call
from rnnjit.codegen.backward_call import BackwardCall
from rnnjit.codegen.forward_call import ForwardCall, Recipe
from rnnjit.codegen.kernel import Kind
from rnnjit.codegen.row_slices import alike
from rnnjit.runtime.openmp import most_threads
from rnnjit_numba import recipes, tile_choice
from rnnjit_numba.arguments import BACKWARD_FIELDS, FIELDS


def forward(
    layer: LayerSpec, rows: Rows, x: Tensor, hx: States, weights: Sequence[Tensor], keep: bool
) -> LayerOutput:
    """`Backend.forward`."""
    T, B, N, sizes = rows if rows.batch_sizes is None else alike(rows)
    threads = most_threads(torch.get_num_threads())
    call = _forward_call(x.dtype, layer, T, B, N, threads)
    return forward_call.forward(call, layer, x, hx, weights, sizes, keep)


def shortcut(
    dtype: torch.dtype, layers: Sequence[LayerSpec], rows: Rows, y_shape: tuple[int, int, int]
) -> Shortcut:
    """`Backend.shortcut` for a dtype."""
    T, B, N, _ = rows
    threads = most_threads(torch.get_num_threads())
    calls = [_forward_call(dtype, layer, T, B, N, threads) for layer in layers]
    return forward_call.shortcut(calls, layers, B, dtype.itemsize, y_shape)


def training(
    dtype: torch.dtype, layer: LayerSpec, rows: Rows, needs: Needs, y_shape: tuple[int, int, int]
) -> Training:
    """`Backend.training` for a dtype."""
    T, B, N, _ = rows
    threads = most_threads(torch.get_num_threads())
    call = _forward_call(dtype, layer, T, B, N, threads)
    record = forward_call.one_layer(call, layer, B, dtype.itemsize, y_shape, keep=True)
    gradients = _backward_call(dtype, layer, T, B, N, threads, needs)
    return backward_call.training(record, gradients)


def backward(
    layer: LayerSpec,
    rows: Rows,
    x: Tensor,
    hx: States,
    weights: Sequence[Tensor],
    output: LayerOutput,
    grad_y: Tensor | None,
    grad_h_n: tuple[Tensor | None, ...],
    needs: Needs,
) -> LayerGrads:
    """`Backend.backward`."""
    T, B, N, sizes = rows
    threads = most_threads(torch.get_num_threads())
    call = _backward_call(x.dtype, layer, T, B, N, threads, needs)
    held = [w.contiguous() for w in weights]
    return call(x, hx, held, output.y, output.saved, grad_y, grad_h_n, (), sizes)


def forward_states(
    layer: LayerSpec, rows: Rows, x: Tensor, hx: States, weights: Sequence[Tensor], keep: bool
) -> LayerOutput:
    """`Backend.forward_states`."""
    T, B, N, sizes = rows if rows.batch_sizes is None else alike(rows)
    threads = most_threads(torch.get_num_threads())
    call = _forward_call(x.dtype, layer, T, B, N, threads)
    return forward_call.forward_states(call, layer, x, hx, weights, sizes, keep)


def backward_states(
    layer: LayerSpec,
    rows: Rows,
    x: Tensor,
    hx: States,
    weights: Sequence[Tensor],
    output: LayerOutput,
    grad_y: Tensor | None,
    grad_h_n: tuple[Tensor | None, ...],
    grad_states: tuple[Tensor | None, ...],
    needs: Needs,
) -> LayerGrads:
    """`Backend.backward_states`."""
    T, B, N, sizes = rows
    threads = most_threads(torch.get_num_threads())
    call = _backward_call(x.dtype, layer, T, B, N, threads, needs)
    held, saved = [w.contiguous() for w in weights], forward_call.joined(layer, output)
    return call(x, hx, held, output.y, saved, grad_y, grad_h_n, grad_states, sizes)


@lru_cache(maxsize=1024)
def _backward_call(
    dtype: torch.dtype, layer: LayerSpec, T: int, B: int, N: int, threads: int, needs: Needs
) -> BackwardCall:
    """How a layer's gradients are computed, for rows of such sizes."""
    recipe = backward_recipe(dtype, layer, T, B, N, threads)
    recurrent = layer.cell.has_product and any(needs.weights[1 :: layer.weights_per_direction])
    parts = recipes.places(recipe, recurrent)
    return backward_call.bound(
        recipe, BACKWARD_FIELDS, recipe.scratch, dtype.itemsize, parts, layer, N, needs
    )


@lru_cache(maxsize=1024)
def _forward_call(
    dtype: torch.dtype, layer: LayerSpec, T: int, B: int, N: int, threads: int
) -> ForwardCall:
    """How a layer is computed, for rows of such sizes."""
    recipe = forward_recipe(dtype, layer, T, B, N, threads)
    return forward_call.bound(recipe, FIELDS, layer, dtype.itemsize)


def forward_recipe(
    dtype: torch.dtype, layer: LayerSpec, T: int, B: int, N: int, threads: int
) -> Recipe:
    """How a layer's forward kernel is called for a dtype, on at most `threads`."""
    kind, rows = Kind(dtype, layer.cell, layer.quantized), Rows(T, B, N)
    cut = recipes.forward_plan(kind, layer, rows, threads)
    tiling = tile_choice.tiling(kind, layer, rows, cut.slice_rows)
    return recipes.forward(kind, layer, rows, cut, tiling)


def backward_recipe(
    dtype: torch.dtype, layer: LayerSpec, T: int, B: int, N: int, threads: int
) -> Recipe:
    """As `forward_recipe`, backward; `parts` are the offsets of dz, `before` and the reductions."""
    kind, rows = Kind(dtype, layer.cell), Rows(T, B, N)
    cut = recipes.backward_plan(kind, layer, rows, threads)
    tiling = tile_choice.tiling(kind, layer, rows, cut.slice_rows)
    outer = tile_choice.outer_tile(kind, layer, rows)
    return recipes.backward(kind, layer, rows, cut, tiling, outer)

"""From tensors to argument blocks: allocates, plans, and calls the kernels."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from rnnjit import LayerGrads, LayerOutput, LayerSpec, Needs, Rows
from rnnjit.backend import Shortcut, States, Training
from rnnjit.codegen import backward_call, forward_call
from rnnjit.codegen.argument_block import argument_block
from rnnjit.codegen.backward_call import BackwardCall, BackwardFields
from rnnjit.codegen.forward_call import ForwardCall, ForwardFields, Recipe
from rnnjit.codegen.kernel import LINE, Kind
from rnnjit.codegen.row_slices import alike, late_threads_for, shared_in_backward
from rnnjit.recurrence.rows import offsets
from rnnjit.runtime.openmp import most_threads
from rnnjit_tvm.arguments import BackwardArguments, ForwardArguments
from rnnjit_tvm.library import library
from rnnjit_tvm.plan import REDUCTION_ROWS, Plan, plan
from rnnjit_tvm.tile_shapes import tile_shapes

_F = ForwardArguments(*range(len(ForwardArguments._fields)))
_B = BackwardArguments(*range(len(BackwardArguments._fields)))
_FIELDS = ForwardFields(_F.N, _F.x, _F.starts, _F.scratch)
_BACKWARD_FIELDS = BackwardFields(_B.x, _B.grad_x, _B.starts)


def forward(
    layer: LayerSpec, rows: Rows, x: Tensor, hx: States, weights: Sequence[Tensor], keep: bool
) -> LayerOutput:
    """`Backend.forward`."""
    T, B, N, sizes = rows if rows.batch_sizes is None else alike(rows)
    threads = most_threads(torch.get_num_threads())
    call = _forward_call(x.element_size(), layer, T, B, N, threads)
    starts = None if sizes is None else offsets(rows, x.device)
    return forward_call.forward(call, layer, x, hx, weights, starts, keep)


def shortcut(
    size: int, layers: Sequence[LayerSpec], rows: Rows, y_shape: tuple[int, int, int]
) -> Shortcut:
    """`Backend.shortcut` for elements of `size` bytes."""
    T, B, N, _ = rows
    threads = most_threads(torch.get_num_threads())
    calls = [_forward_call(size, layer, T, B, N, threads) for layer in layers]
    return forward_call.shortcut(calls, layers, B, size, y_shape)


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
    call = _backward_call(x.element_size(), layer, T, B, N, threads, needs)
    starts = None if sizes is None else offsets(rows, x.device)
    held = [w.contiguous() for w in weights]
    return call(x, hx, held, output.y, output.saved, grad_y, grad_h_n, (), starts)


@lru_cache(maxsize=1024)
def _backward_call(
    size: int, layer: LayerSpec, T: int, B: int, N: int, threads: int, needs: Needs
) -> BackwardCall:
    """How a layer's gradients are computed, for rows of such sizes."""
    recipe = _backward_recipe(size, layer, T, B, N, threads)
    # Behind the recipe's scratch: dz, then the addresses before each row.
    dz = -(-recipe.scratch * size // LINE) * LINE
    before = -(-(dz + N * layer.num_directions * layer.hidden_size * size) // LINE) * LINE
    places = [(_B.scratch, 0), (_B.windows, recipe.parts[0]), (_B.dz, dz)]
    if any(needs.weights[1 :: layer.weights_per_direction]):
        places.append((_B.before, before))
    scratch = (before + 8 * layer.num_directions * N) // size
    return backward_call.bound(recipe, _BACKWARD_FIELDS, scratch, size, places, layer, N, needs)


@lru_cache(maxsize=1024)
def _forward_call(size: int, layer: LayerSpec, T: int, B: int, N: int, threads: int) -> ForwardCall:
    """How a layer is computed, for rows of such sizes."""
    recipe = _forward_recipe(size, layer, T, B, N, threads)
    return forward_call.bound(recipe, _FIELDS, layer, size)


def _forward_recipe(size: int, layer: LayerSpec, T: int, B: int, N: int, threads: int) -> Recipe:
    kernels = library(Kind(8 * size, layer.cell))
    lanes = kernels.isa.vector_bytes // size
    cut = plan(layer, Rows(T, B, N), threads)
    wide = -(-layer.hidden_size // lanes)
    panel = (layer.input_size + layer.hidden_size) * lanes
    packed = wide * (panel + lanes)
    fixed = _problem(layer, (T, B, N), cut)
    fixed |= {"hoist": int(cut.hoist), "panel": panel, "packed": packed}
    block = argument_block(ForwardArguments._fields, fixed)
    late = late_threads_for((__name__, "forward", size), layer, Rows(T, B, N), cut.threads)
    scratch = layer.num_directions * packed
    return Recipe(kernels.forward, cut.threads, block, scratch, late_threads=late)


@lru_cache(maxsize=1024)
def _backward_recipe(size: int, layer: LayerSpec, T: int, B: int, N: int, threads: int) -> Recipe:
    kernels = library(Kind(8 * size, layer.cell))
    lanes = kernels.isa.vector_bytes // size
    shared = shared_in_backward(layer, Rows(T, B, N))
    cut = plan(layer, Rows(T, B, N), threads, shared)
    wide, inputs = -(-layer.hidden_size // lanes), -(-layer.input_size // lanes)
    panel = layer.hidden_size * lanes
    packed = (wide + inputs) * panel
    zeros = max(wide, inputs) * lanes
    window = tile_shapes(kernels.isa)[0][1] * lanes * REDUCTION_ROWS
    fixed = _problem(layer, (T, B, N), cut)
    fixed |= {"panel": panel, "packed": packed, "window": window}
    block = argument_block(BackwardArguments._fields, fixed)
    start = layer.num_directions * packed + zeros
    scratch = start + cut.threads * window
    kernel = __name__, "backward", size
    late = late_threads_for(kernel, layer, Rows(T, B, N), cut.threads, shared)
    parts = (start * size,)
    return Recipe(kernels.backward, cut.threads, block, scratch, parts=parts, late_threads=late)


def _problem(layer: LayerSpec, rows: tuple[int, int, int], cut: Plan) -> dict[str, int]:
    """The arguments that both kernels take."""
    T, B, N = rows
    return {
        "T": T,
        "B": B,
        "N": N,
        "I": layer.input_size,
        "H": layer.hidden_size,
        "D": layer.num_directions,
        "slices": cut.slices,
        "slice_rows": cut.slice_rows,
        "stride": cut.stride,
    }

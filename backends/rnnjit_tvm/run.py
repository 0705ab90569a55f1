"""From tensors to argument blocks: allocates, plans, and calls the kernels."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from rnnjit import LayerGrads, LayerOutput, LayerSpec, Needs, Rows
from rnnjit.backend import Shortcut
from rnnjit.codegen import forward_call
from rnnjit.codegen.argument_block import address_of, argument_block
from rnnjit.codegen.forward_call import ForwardFields, Recipe
from rnnjit.codegen.kernel import Kind
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


def forward(
    layer: LayerSpec, rows: Rows, x: Tensor, h0: Tensor, weights: Sequence[Tensor]
) -> LayerOutput:
    """`Backend.forward` for cells with one state."""
    T, B, N, sizes = rows if rows.batch_sizes is None else alike(rows)
    threads = most_threads(torch.get_num_threads())
    recipe = _forward_recipe(x.element_size(), layer, T, B, N, threads)
    starts = None if sizes is None else offsets(rows, x.device)
    return forward_call.forward(recipe, _FIELDS, layer, x, h0, weights, starts)


def shortcut(
    size: int, layers: Sequence[LayerSpec], rows: Rows, y_shape: tuple[int, int, int]
) -> Shortcut:
    """`Backend.shortcut` for elements of `size` bytes."""
    T, B, N, _ = rows
    threads = most_threads(torch.get_num_threads())
    recipes = [_forward_recipe(size, layer, T, B, N, threads) for layer in layers]
    return forward_call.shortcut(recipes, _FIELDS, layers, B, size, y_shape)


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
    recipe = _backward_recipe(x.element_size(), layer, T, B, N, threads)
    grad_y = None if grad_y is None else grad_y.contiguous()
    grad_h_n = None if grad_h_n is None else grad_h_n.contiguous()
    grad_x = torch.empty_like(x) if needs.x else None
    grad_h0 = torch.empty_like(h0) if needs.hx[0] else None
    starts = None if sizes is None else offsets(rows, x.device)
    dz, scratch = torch.empty_like(y), x.new_empty(recipe.scratch)
    contiguous = [w.contiguous() for w in weights]
    grads = _allocate(layer, x, weights, needs.weights)
    block = recipe.block[:]
    block[_B.starts], block[_B.scratch] = address_of(starts), scratch.data_ptr()
    block[_B.windows] = scratch.data_ptr() + recipe.parts[0]
    block[_B.x], block[_B.h0], block[_B.y] = x.data_ptr(), h0.data_ptr(), y.data_ptr()
    block[_B.grad_y], block[_B.grad_h_n] = address_of(grad_y), address_of(grad_h_n)
    block[_B.dz] = dz.data_ptr()
    block[_B.grad_x], block[_B.grad_h0] = address_of(grad_x), address_of(grad_h0)
    count = layer.weights_per_direction
    fields = ((_B.w_ih_0, _B.grad_w_ih_0), (_B.w_ih_1, _B.grad_w_ih_1))
    for d, (weight, grad) in enumerate(fields[: layer.num_directions]):
        own = d * count
        block[weight] = contiguous[own].data_ptr()
        block[weight + 1] = contiguous[own + 1].data_ptr()
        for i, tensor in enumerate(grads[own : own + min(count, 3)]):
            block[grad + i] = address_of(tensor)
    if any(needs.weights[1::count]):
        before = x.new_empty((layer.num_directions, N), dtype=torch.int64)
        block[_B.before] = before.data_ptr()
    recipe.kernel(block, recipe.threads, recipe.late_threads)
    return LayerGrads(grad_x, (grad_h0,), _by_weight(grads, needs.weights, count))


def _allocate(
    layer: LayerSpec, x: Tensor, weights: Sequence[Tensor], needed: tuple[bool, ...]
) -> list[Tensor | None]:
    """Memory for the gradients of the weights; both biases share that of b_ih."""
    count = layer.weights_per_direction
    # Without rows, the kernel writes nothing to them.
    allocate = x.new_empty if len(x) else x.new_zeros
    found: list[Tensor | None] = []
    for i, weight in enumerate(weights):
        kind = i % count
        wanted = needed[i] or (kind == 2 and needed[i + 1])
        if kind == 3 or not wanted:
            found.append(None)
        else:
            found.append(allocate(weight.shape))
    return found


def _by_weight(
    grads: list[Tensor | None], needed: tuple[bool, ...], count: int
) -> tuple[Tensor | None, ...]:
    """The gradient of each weight that needs one; b_hh gets a copy of the gradient of b_ih."""
    found: list[Tensor | None] = []
    for i, need in enumerate(needed):
        of_b_hh = i % count == 3
        grad = grads[i - 1] if of_b_hh else grads[i]
        if not need or grad is None:
            found.append(None)
        else:
            found.append(grad.clone() if of_b_hh and needed[i - 1] else grad)
    return tuple(found)


@lru_cache(maxsize=1024)
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

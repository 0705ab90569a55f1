"""From tensors to argument blocks: allocates, plans, and calls the kernels."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from rnnjit import LayerGrads, LayerOutput, LayerSpec, Needs, Rows
from rnnjit.backend import Shortcut
from rnnjit.codegen import forward_call
from rnnjit.codegen.argument_block import address_of
from rnnjit.codegen.forward_call import ForwardFields, Recipe
from rnnjit.codegen.kernel import Kind
from rnnjit.codegen.row_slices import alike
from rnnjit.runtime.openmp import most_threads
from rnnjit_numba import recipes, tile_choice
from rnnjit_numba.arguments import BackwardArguments, ForwardArguments

_F = ForwardArguments(*range(len(ForwardArguments._fields)))
_B = BackwardArguments(*range(len(BackwardArguments._fields)))
FIELDS = ForwardFields(_F.N, _F.x, _F.sizes, _F.scratch)


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
    I, H, D = layer.input_size, layer.hidden_size, layer.num_directions
    threads = most_threads(torch.get_num_threads())
    recipe = backward_recipe(x.element_size(), layer, T, B, N, threads)
    grad_y = None if grad_y is None else grad_y.contiguous()
    grad_h_n = None if grad_h_n is None else grad_h_n.contiguous()
    held = [w.contiguous() for w in weights]
    count = layer.weights_per_direction
    wanted = _wanted(needs.weights, count)
    grad_x = torch.empty_like(x) if needs.x else None
    grad_h0 = torch.empty_like(h0) if needs.hx[0] else None
    shapes = ((H, I), (H, H), (H,))
    grads = [
        _result(x, shape, N) if want else None
        for _ in range(D)
        for want, shape in zip(wanted, shapes, strict=True)
    ]
    scratch = x.new_empty(recipe.scratch)
    start = scratch.data_ptr()
    dz, before, reduction = recipe.parts
    block = recipe.block[:]
    block[_B.sizes] = address_of(sizes)
    block[_B.x], block[_B.h0], block[_B.y] = x.data_ptr(), h0.data_ptr(), y.data_ptr()
    block[_B.grad_y], block[_B.grad_h_n] = address_of(grad_y), address_of(grad_h_n)
    block[_B.grad_x], block[_B.grad_h0] = address_of(grad_x), address_of(grad_h0)
    for i, grad in enumerate(grads):
        block[_B.grad_w_ih_0 + i] = address_of(grad)
    block[_B.scratch], block[_B.dz_buffer] = start, start + dz
    block[_B.reduction] = start + reduction
    block[_B.before] = start + before if wanted[1] else 0
    block[_B.w_ih_0], block[_B.w_hh_0] = held[0].data_ptr(), held[1].data_ptr()
    if D == 2:
        block[_B.w_ih_1], block[_B.w_hh_1] = held[count].data_ptr(), held[count + 1].data_ptr()
    recipe.kernel(block, recipe.threads, recipe.late_threads)
    return LayerGrads(grad_x, (grad_h0,), _by_weight(grads, needs.weights, count))


@lru_cache(maxsize=256)
def _wanted(needed: tuple[bool, ...], count: int) -> tuple[bool, bool, bool]:
    """Whether dW_ih, dW_hh and db are needed, in any direction."""
    want_ih, want_hh, *want_b = (any(needed[i::count]) for i in range(count))
    return want_ih, want_hh, any(want_b)


def _by_weight(
    grads: Sequence[Tensor | None], needed: tuple[bool, ...], count: int
) -> tuple[Tensor | None, ...]:
    """The gradient of each weight that needs one; no two share memory.

    Args:
        grads: for each direction dW_ih, dW_hh and db; b_ih and b_hh have the same gradient.
        needed: for each of a layer's weights, whether it needs one.
        count: weights of a direction.
    """
    found: list[Tensor | None] = []
    for i, need in enumerate(needed):
        d, kind = divmod(i, count)
        grad = grads[3 * d + min(kind, 2)]
        if not need or grad is None:
            found.append(None)
        else:
            found.append(grad.clone() if kind == 3 and needed[i - 1] else grad)
    return tuple(found)


@lru_cache(maxsize=1024)
def forward_recipe(size: int, layer: LayerSpec, T: int, B: int, N: int, threads: int) -> Recipe:
    """How a layer's forward kernel is called for elements of `size` bytes, on at most `threads`."""
    kind = Kind(8 * size, layer.cell)
    cut = recipes.forward_plan(kind, layer, Rows(T, B, N), threads)
    tiling = tile_choice.tiling(kind, layer, N, cut.slice_rows)
    return recipes.forward(kind, layer, Rows(T, B, N), cut, tiling)


@lru_cache(maxsize=1024)
def backward_recipe(size: int, layer: LayerSpec, T: int, B: int, N: int, threads: int) -> Recipe:
    """As `forward_recipe`, backward; `parts` are the offsets of dz, `before` and the reductions."""
    kind = Kind(8 * size, layer.cell)
    cut = recipes.backward_plan(kind, layer, Rows(T, B, N), threads)
    tiling = tile_choice.tiling(kind, layer, N, cut.slice_rows)
    outer = tile_choice.outer_tile(kind, layer, N)
    return recipes.backward(kind, layer, Rows(T, B, N), cut, tiling, outer)


def _result(like: Tensor, shape: tuple[int, ...], rows: int) -> Tensor:
    """Memory for a gradient; zeros if there are no rows to sum."""
    return like.new_empty(shape) if rows else like.new_zeros(shape)

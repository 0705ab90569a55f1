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
from rnnjit.codegen.kernel import LINE, Kind
from rnnjit.codegen.row_slices import alike, late_threads_for, shared_in_backward
from rnnjit.runtime.openmp import most_threads
from rnnjit_numba.arguments import BackwardArguments, ForwardArguments, area_bytes
from rnnjit_numba.library import library
from rnnjit_numba.plan import REDUCTION_ROWS, Plan, plan, window
from rnnjit_numba.tile_shapes import tile_shapes

#: From this many bytes on, scratch memory is allocated; less is part of the argument block.
_LARGE = 4096
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
    kernels = library(Kind(8 * size, layer.cell))
    lanes, vector = kernels.isa.lanes(size), kernels.isa.vector_bytes
    wide_i, wide_h = -(-layer.input_size // lanes), -(-layer.hidden_size // lanes)
    rows = Rows(T, B, N)
    cut = plan(layer, rows, threads, wide_h)
    packed_inputs = wide_i * lanes * vector
    packed_row = packed_inputs + wide_h * lanes * vector
    if cut.direct:
        packed_inputs = packed_row = 0
    packed = wide_h * (packed_row + vector)
    fixed = {
        **_problem(layer, T, B, N, cut),
        "hoist": int(cut.hoist),
        "direct": int(cut.direct),
        "packed_inputs": packed_inputs,
        "packed_row": packed_row,
        "packed": packed,
    }
    scratch, sync = layer.num_directions * packed, _sync_words(layer, cut.threads)
    names = ForwardArguments._fields
    inside = 8 * (len(names) + sync) if scratch < _LARGE else 0
    block = argument_block(names, fixed, sync + (scratch // 8 if inside else 0))
    late = late_threads_for((__name__, "forward", size), layer, rows, cut.threads)
    return Recipe(kernels.forward, cut.threads, block, scratch // size, inside, sync, (), late)


@lru_cache(maxsize=1024)
def backward_recipe(size: int, layer: LayerSpec, T: int, B: int, N: int, threads: int) -> Recipe:
    """As `forward_recipe`, backward; `parts` are the offsets of dz, `before` and the reductions."""
    kernels, D = library(Kind(8 * size, layer.cell)), layer.num_directions
    lanes, vector = kernels.isa.lanes(size), kernels.isa.vector_bytes
    wide_i, wide_h = -(-layer.input_size // lanes), -(-layer.hidden_size // lanes)
    rows = Rows(T, B, N)
    shared, (window_rows, held_rows) = shared_in_backward(layer, rows), window(layer, rows)
    cut = plan(layer, rows, threads, wide_h, shared)
    packed_column = 0 if cut.direct else layer.hidden_size * vector
    packed = (wide_h + wide_i) * packed_column + max(wide_i, wide_h) * vector
    tile_rows, widest = tile_shapes(kernels.isa)[0]
    dz_block = -(-layer.hidden_size // tile_rows) * tile_rows * REDUCTION_ROWS * size
    reduction = dz_block + (REDUCTION_ROWS + tile_rows) * widest * vector
    fixed = {
        **_problem(layer, T, B, N, cut),
        "window": window_rows,
        "packed_column": packed_column,
        "direct": int(cut.direct),
        "packed": packed,
        "reduction_size": reduction,
    }
    sync = _sync_words(layer, cut.threads)
    block = argument_block(BackwardArguments._fields, fixed, sync)
    dz = D * packed
    before = _aligned(dz + D * held_rows * layer.hidden_size * size)
    own = _aligned(before + D * N * 8)
    scratch = (own + cut.threads * reduction) // size
    late = late_threads_for((__name__, "backward", size), layer, rows, cut.threads, shared)
    parts = dz, before, own
    return Recipe(kernels.backward, cut.threads, block, scratch, 0, sync, parts, late)


def _problem(layer: LayerSpec, T: int, B: int, N: int, cut: Plan) -> dict[str, int]:
    """The arguments that both kernels take."""
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
        "parts": cut.parts,
        "tail": cut.tail,
    }


def _sync_words(layer: LayerSpec, threads: int) -> int:
    """Words for synchronisation: an area for the team, one per direction, and their alignment."""
    if threads == 1:
        return 0
    return (area_bytes(threads) * (1 + layer.num_directions) + LINE) // 8


def _aligned(size: int) -> int:
    """The next multiple of a cache line."""
    return -(-size // LINE) * LINE


def _result(like: Tensor, shape: tuple[int, ...], rows: int) -> Tensor:
    """Memory for a gradient; zeros if there are no rows to sum."""
    return like.new_empty(shape) if rows else like.new_zeros(shape)

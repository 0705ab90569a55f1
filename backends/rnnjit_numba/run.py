"""From tensors to argument blocks: allocates, plans, and calls the kernels."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from functools import cache, lru_cache
from struct import Struct
from typing import NamedTuple

import torch
from torch import Tensor

from rnnjit import LayerGrads, LayerOutput, LayerSpec, Needs, Rows
from rnnjit.backend import Shortcut
from rnnjit.team import most_threads
from rnnjit_numba.arguments import CODES, LINE, BackwardArguments, ForwardArguments, area_bytes
from rnnjit_numba.host import row_tiles
from rnnjit_numba.library import Kernel, library
from rnnjit_numba.plan import REDUCTION_ROWS, Plan, plan, window

#: Bytes of scratch memory from which on it is allocated rather than part of the argument block.
_LARGE = 4096
_F = ForwardArguments(*range(len(ForwardArguments._fields)))
_B = BackwardArguments(*range(len(BackwardArguments._fields)))


class Recipe(NamedTuple):
    """All of a call that does not depend on its tensors.

    Attributes:
        kernel: what to call.
        threads: size of the team.
        block: the argument block with every size filled in, and room behind the arguments; copied
            for each call, since kernels write to that room.
        scratch: bytes of scratch memory.
        inside: where in the block the scratch is, in bytes; 0 if it is too large for that.
        meeting: words of the block, behind the arguments, that threads meet by: zero at first.
        parts: where in the scratch its parts begin, in bytes (see the kernels' recipes).
    """

    kernel: Kernel
    threads: int
    block: array[int]
    scratch: int
    inside: int
    meeting: int
    parts: tuple[int, ...] = ()


def forward(
    bits: int, layer: LayerSpec, rows: Rows, x: Tensor, h0: Tensor, weights: Sequence[Tensor]
) -> LayerOutput:
    """`Backend.forward` for elements of `bits` bits."""
    T, B, N, sizes = rows
    threads = most_threads(torch.get_num_threads())
    recipe = forward_recipe(bits, layer, T, B, N, threads)
    y = x.new_empty((N, layer.num_directions * layer.hidden_size))
    h_n = torch.empty_like(h0)
    held = [w if w.is_contiguous() else w.contiguous() for w in weights]
    block = recipe.block[:]
    pointers(layer.bias, layer.num_directions).pack_into(
        *(block, 8 * _F.x, x.data_ptr(), h0.data_ptr(), y.data_ptr(), h_n.data_ptr()),
        *[weight.data_ptr() for weight in held],
    )
    if sizes is not None:
        block[_F.sizes] = sizes.data_ptr()
    scratch = None if recipe.inside else x.new_empty(8 * recipe.scratch // bits)
    if scratch is None:
        block[_F.scratch] = block.buffer_info()[0] + recipe.inside
    else:
        block[_F.scratch] = scratch.data_ptr()
    recipe.kernel(block, _F.sync, recipe.threads)
    return LayerOutput(y, h_n)


def shortcut(
    bits: int, layers: Sequence[LayerSpec], rows: Rows, y_shape: tuple[int, int, int]
) -> Shortcut:
    """`Backend.shortcut` for elements of `bits` bits."""
    T, B, N, _ = rows
    threads = most_threads(torch.get_num_threads())
    stack = []
    state = layers[0].num_directions * B * layers[0].hidden_size * bits // 8
    for i, layer in enumerate(layers):
        recipe = forward_recipe(bits, layer, T, B, N, threads)
        count = layer.num_directions * layer.weights_per_direction
        stack.append((recipe, i * state, i * count, (i + 1) * count))
    # empty_like is the quickest way to allocate, where y has the state's shape.
    like_state = y_shape == (1, B, layers[0].hidden_size) and len(layers) == 1
    write, empty_like = (
        pointers(layers[0].bias, layers[0].num_directions).pack_into,
        torch.empty_like,
    )
    at, scratch_field, sync = 8 * _F.x, _F.scratch, _F.sync

    def run(x: Tensor, h0: Tensor, weights: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        h_n = empty_like(h0)
        h0_address, h_n_address = h0.data_ptr(), h_n.data_ptr()
        addresses = [weight.data_ptr() for weight in weights]
        y = x
        for recipe, offset, first, last in stack:
            x, y = y, empty_like(h0) if like_state else x.new_empty(y_shape)
            block = recipe.block[:]
            write(
                *(block, at, x.data_ptr(), h0_address + offset, y.data_ptr()),
                *(h_n_address + offset, *addresses[first:last]),
            )
            if recipe.inside:
                block[scratch_field] = block.buffer_info()[0] + recipe.inside
                recipe.kernel(block, sync, recipe.threads)
                continue
            scratch = x.new_empty(8 * recipe.scratch // bits)
            block[scratch_field] = scratch.data_ptr()
            recipe.kernel(block, sync, recipe.threads)
        return y, h_n

    return run


@cache
def pointers(bias: bool, directions: int) -> Struct:
    """How the addresses of x, h0, y, h_n and the weights lie in the forward argument block."""
    weights = "4q" if bias else "2q16x"
    return Struct("=4q" + weights * directions)


def backward(
    bits: int,
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
    """`Backend.backward` for elements of `bits` bits."""
    T, B, N, sizes = rows
    I, H, D = layer.input_size, layer.hidden_size, layer.num_directions
    threads = most_threads(torch.get_num_threads())
    recipe = _backward_recipe(bits, layer, T, B, N, threads)
    grad_y = None if grad_y is None else grad_y.contiguous()
    grad_h_n = None if grad_h_n is None else grad_h_n.contiguous()
    held = [w.contiguous() for w in weights]
    count = layer.weights_per_direction
    want_ih, want_hh, want_b = _wanted(needs.weights, count)
    grad_x = torch.empty_like(x) if needs.x else None
    grad_h0 = torch.empty_like(h0) if needs.h0 else None
    lead = () if D == 1 else (D,)
    grad_w_ih = _result(x, (*lead, H, I), N) if want_ih else None
    grad_w_hh = _result(x, (*lead, H, H), N) if want_hh else None
    grad_b = _result(x, (*lead, H), N) if want_b else None
    scratch = x.new_empty(recipe.scratch // (bits // 8))
    start = scratch.data_ptr()
    dz, before, reduction = recipe.parts
    block = recipe.block[:]
    block[_B.sizes] = _address(sizes)
    block[_B.x], block[_B.h0], block[_B.y] = x.data_ptr(), h0.data_ptr(), y.data_ptr()
    block[_B.grad_y], block[_B.grad_h_n] = _address(grad_y), _address(grad_h_n)
    block[_B.grad_x], block[_B.grad_h0] = _address(grad_x), _address(grad_h0)
    block[_B.grad_w_ih], block[_B.grad_w_hh] = _address(grad_w_ih), _address(grad_w_hh)
    block[_B.grad_b] = _address(grad_b)
    block[_B.scratch], block[_B.dz_buffer] = start, start + dz
    block[_B.reduction] = start + reduction
    block[_B.before] = start + before if want_hh else 0
    block[_B.w_ih_0], block[_B.w_hh_0] = held[0].data_ptr(), held[1].data_ptr()
    if D == 2:
        block[_B.w_ih_1], block[_B.w_hh_1] = held[count].data_ptr(), held[count + 1].data_ptr()
    recipe.kernel(block, _B.sync, recipe.threads)
    grads = (grad_w_ih, grad_w_hh, grad_b, grad_b)[:count]
    return LayerGrads(grad_x, grad_h0, _shared_out(grads, needs.weights, D))


@lru_cache(maxsize=256)
def _wanted(needed: tuple[bool, ...], count: int) -> tuple[bool, bool, bool]:
    """Whether dW_ih, dW_hh and db are needed, in any direction."""
    want_ih, want_hh, *want_b = (any(needed[i::count]) for i in range(count))
    return want_ih, want_hh, any(want_b)


def _shared_out(
    grads: Sequence[Tensor | None], needed: tuple[bool, ...], directions: int
) -> tuple[Tensor | None, ...]:
    """The gradient of each weight that needs one; b_hh gets a copy of what b_ih gets."""
    found: list[Tensor | None] = []
    for d in range(directions):
        for i, grad in enumerate(grads):
            if grad is None or not needed[d * len(grads) + i]:
                found.append(None)
                continue
            own = grad if directions == 1 else grad[d]
            found.append(own.clone() if i == 3 else own)
    return tuple(found)


@lru_cache(maxsize=1024)
def forward_recipe(bits: int, layer: LayerSpec, T: int, B: int, N: int, threads: int) -> Recipe:
    """How a layer's forward kernel is called for elements of `bits` bits, on at most `threads`."""
    kernels = library(bits)
    size = bits // 8
    lanes, vector = kernels.isa.lanes(size), kernels.isa.vector_bytes
    wide_i, wide_h = -(-layer.input_size // lanes), -(-layer.hidden_size // lanes)
    cut = plan(layer, Rows(T, B, N), threads, wide_h)
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
    scratch = layer.num_directions * packed
    meeting = _meeting(layer, cut.threads)
    block, inside = _block(ForwardArguments._fields, fixed, meeting, scratch)
    return Recipe(kernels.forward, cut.threads, block, scratch, inside, meeting)


@lru_cache(maxsize=1024)
def _backward_recipe(bits: int, layer: LayerSpec, T: int, B: int, N: int, threads: int) -> Recipe:
    kernels = library(bits)
    size = bits // 8
    lanes, vector = kernels.isa.lanes(size), kernels.isa.vector_bytes
    wide_i, wide_h = -(-layer.input_size // lanes), -(-layer.hidden_size // lanes)
    rows = Rows(T, B, N)
    cut, (window_rows, held_rows) = plan(layer, rows, threads, wide_h), window(layer, rows)
    packed_column = 0 if cut.direct else layer.hidden_size * vector
    packed = (wide_h + wide_i) * packed_column + max(wide_i, wide_h) * vector
    tile_rows, widest = row_tiles(kernels.isa)[0]
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
    meeting = _meeting(layer, cut.threads)
    block, _ = _block(BackwardArguments._fields, fixed, meeting, _LARGE)
    D = layer.num_directions
    dz = D * packed
    before = _aligned(dz + D * held_rows * layer.hidden_size * size)
    own = _aligned(before + D * N * 8)
    scratch = own + cut.threads * reduction
    return Recipe(kernels.backward, cut.threads, block, scratch, 0, meeting, (dz, before, own))


def _problem(layer: LayerSpec, T: int, B: int, N: int, cut: Plan) -> dict[str, int]:
    """The sizes that both kernels are told."""
    return {
        "T": T,
        "B": B,
        "N": N,
        "I": layer.input_size,
        "H": layer.hidden_size,
        "D": layer.num_directions,
        "cell": CODES[layer.cell],
        "slices": cut.slices,
        "slice_rows": cut.slice_rows,
        "every": cut.every,
        "parts": cut.parts,
        "tail": cut.tail,
    }


def _meeting(layer: LayerSpec, threads: int) -> int:
    """Words that threads meet by: an area of the team, one for each direction, and to align them.

    One thread has none to meet.
    """
    if threads == 1:
        return 0
    return (area_bytes(threads) * (1 + layer.num_directions) + LINE) // 8


def _block(
    fields: tuple[str, ...], fixed: dict[str, int], meeting: int, scratch: int
) -> tuple[array[int], int]:
    """An argument block with room for threads to meet and a small scratch, and where that is."""
    inside = 8 * (len(fields) + meeting) if scratch < _LARGE else 0
    room = meeting + (scratch // 8 if inside else 0)
    return array("q", [*(fixed.get(field, 0) for field in fields), *[0] * room]), inside


def _aligned(size: int) -> int:
    """The next multiple of a cache line."""
    return -(-size // LINE) * LINE


def _result(like: Tensor, shape: tuple[int, ...], rows: int) -> Tensor:
    """Room for a gradient; zeros where there are no rows to sum."""
    return like.new_empty(shape) if rows else like.new_zeros(shape)


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()

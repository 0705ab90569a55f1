"""From tensors to argument blocks: allocates, plans, and calls the kernels."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from rnnjit import LayerGrads, LayerOutput, LayerSpec, Needs, Rows
from rnnjit_numba.arguments import BackwardArguments, ForwardArguments
from rnnjit_numba.library import Kernel, library
from rnnjit_numba.plan import REDUCTION_ROWS, Plan, plan
from rnnjit_numba.team import most_threads

_CELLS = {"tanh": 0, "relu": 1}
_LINE = 64
#: Barrier counters behind the arguments: one line for the team, one for each direction, and what
#: it takes to align them.
_SYNC_WORDS = 4 * _LINE // 8
_F = ForwardArguments(*range(len(ForwardArguments._fields)))
_B = BackwardArguments(*range(len(BackwardArguments._fields)))


class Recipe(NamedTuple):
    """All of a call that does not depend on its tensors.

    Attributes:
        kernel: what to call.
        threads: size of the team.
        block: the argument block with every size filled in; copied for each call, since the
            barrier counters behind the arguments are written to.
        scratch: elements of scratch memory, packed weights and then the threads' own blocks.
        own: bytes from the start of the scratch to the threads' own blocks.
    """

    kernel: Kernel
    threads: int
    block: array[int]
    scratch: int
    own: int


def forward(
    bits: int, layer: LayerSpec, rows: Rows, x: Tensor, h0: Tensor, weights: Sequence[Tensor]
) -> LayerOutput:
    """`Backend.forward` for elements of `bits` bits."""
    T, B, N, sizes = rows
    threads = most_threads(torch.get_num_threads())
    recipe = _forward_recipe(bits, layer, T, B, N, threads)
    y = x.new_empty((N, layer.num_directions * layer.hidden_size))
    h_n = torch.empty_like(h0)
    scratch = x.new_empty(recipe.scratch)
    block = recipe.block[:]
    if sizes is not None:
        block[_F.sizes] = sizes.data_ptr()
    block[_F.x] = x.data_ptr()
    block[_F.h0] = h0.data_ptr()
    block[_F.y] = y.data_ptr()
    block[_F.h_n] = h_n.data_ptr()
    block[_F.scratch] = scratch.data_ptr()
    held = [w if w.is_contiguous() else w.contiguous() for w in weights]
    count = layer.weights_per_direction
    for i, weight in enumerate(held):
        block[_F.w_ih_0 + i // count * 4 + i % count] = weight.data_ptr()
    recipe.kernel(block, _F.sync, recipe.threads)
    return LayerOutput(y, h_n)


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
    want_ih, want_hh, *want_b = (any(needs.weights[i::count]) for i in range(count))
    grad_x = x.new_empty((N, I)) if needs.x else None
    grad_h0 = torch.empty_like(h0) if needs.h0 else None
    grad_w_ih = _result(x, (D, H, I), want_ih, N)
    grad_w_hh = _result(x, (D, H, H), want_hh, N)
    grad_b = _result(x, (D, H), any(want_b), N)
    dz = x.new_empty((D, N, H))
    before = torch.empty((D, N), dtype=torch.int64) if want_hh else None
    scratch = x.new_empty(recipe.scratch)
    block = recipe.block[:]
    tensors = {
        _B.sizes: sizes,
        _B.x: x,
        _B.h0: h0,
        _B.y: y,
        _B.grad_y: grad_y,
        _B.grad_h_n: grad_h_n,
        _B.dz: dz,
        _B.grad_x: grad_x,
        _B.grad_h0: grad_h0,
        _B.grad_w_ih: grad_w_ih,
        _B.grad_w_hh: grad_w_hh,
        _B.grad_b: grad_b,
        _B.before: before,
        _B.scratch: scratch,
    }
    for i, weight in enumerate(held):
        if i % count < 2:
            tensors[_B.w_ih_0 + i // count * 2 + i % count] = weight
    for field, tensor in tensors.items():
        block[field] = 0 if tensor is None else tensor.data_ptr()
    block[_B.reduction] = scratch.data_ptr() + recipe.own
    recipe.kernel(block, _B.sync, recipe.threads)
    results = (grad_w_ih, grad_w_hh, grad_b, None if grad_b is None else grad_b.clone())
    grads = [
        grad[d] if needs.weights[d * count + i] and grad is not None else None
        for d in range(D)
        for i, grad in enumerate(results[:count])
    ]
    return LayerGrads(grad_x, grad_h0, tuple(grads))


@lru_cache(maxsize=1024)
def _forward_recipe(bits: int, layer: LayerSpec, T: int, B: int, N: int, threads: int) -> Recipe:
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
    block = _block(ForwardArguments._fields, fixed)
    total = layer.num_directions * packed
    return Recipe(kernels.forward, cut.threads, block, total // size, total)


@lru_cache(maxsize=1024)
def _backward_recipe(bits: int, layer: LayerSpec, T: int, B: int, N: int, threads: int) -> Recipe:
    kernels = library(bits)
    size = bits // 8
    lanes, vector = kernels.isa.lanes(size), kernels.isa.vector_bytes
    wide_i, wide_h = -(-layer.input_size // lanes), -(-layer.hidden_size // lanes)
    cut = plan(layer, Rows(T, B, N), threads, wide_h)
    packed_column = 0 if cut.direct else layer.hidden_size * vector
    packed = (wide_h + wide_i) * packed_column + max(wide_i, wide_h) * vector
    tile_rows, widest = kernels.isa.row_tiles[0]
    dz_block = -(-layer.hidden_size // tile_rows) * tile_rows * REDUCTION_ROWS * size
    reduction = dz_block + (REDUCTION_ROWS + tile_rows) * widest * vector
    fixed = {
        **_problem(layer, T, B, N, cut),
        "packed_column": packed_column,
        "direct": int(cut.direct),
        "packed": packed,
        "reduction_size": reduction,
    }
    block = _block(BackwardArguments._fields, fixed)
    own = layer.num_directions * packed
    scratch = (own + cut.threads * reduction) // size
    return Recipe(kernels.backward, cut.threads, block, scratch, own)


def _problem(layer: LayerSpec, T: int, B: int, N: int, cut: Plan) -> dict[str, int]:
    """The sizes that both kernels are told."""
    return {
        "T": T,
        "B": B,
        "N": N,
        "I": layer.input_size,
        "H": layer.hidden_size,
        "D": layer.num_directions,
        "cell": _CELLS[layer.cell],
        "slices": cut.slices,
        "slice_rows": cut.slice_rows,
        "parts": cut.parts,
    }


def _block(fields: tuple[str, ...], fixed: dict[str, int]) -> array[int]:
    return array("q", [*(fixed.get(field, 0) for field in fields), *[0] * _SYNC_WORDS])


def _result(like: Tensor, shape: tuple[int, ...], wanted: bool, rows: int) -> Tensor | None:
    """Room for a gradient that is wanted; zeros where there are no rows to sum."""
    if not wanted:
        return None
    return like.new_empty(shape) if rows else like.new_zeros(shape)

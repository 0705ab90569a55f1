"""From tensors to argument blocks: allocates, plans, and calls the kernels."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from rnnjit import LayerOutput, LayerSpec, Rows
from rnnjit.recurrence import Backward, Forward, Recurrence, layer_forward
from rnnjit.recurrence.rows import offsets
from rnnjit.team import most_threads
from rnnjit_tvm.arguments import CELLS, BackwardArguments, ForwardArguments
from rnnjit_tvm.library import Kernel, library
from rnnjit_tvm.plan import Plan, plan

_F = ForwardArguments(*range(len(ForwardArguments._fields)))
_B = BackwardArguments(*range(len(BackwardArguments._fields)))


class Recipe(NamedTuple):
    """All of a call that does not depend on its tensors.

    Attributes:
        kernel: what to call.
        threads: size of the team.
        block: the argument block with every size filled in; copied for each call.
        scratch: elements of scratch memory.
    """

    kernel: Kernel
    threads: int
    block: array[int]
    scratch: int


def forward(
    layer: LayerSpec, rows: Rows, x: Tensor, h0: Tensor, weights: Sequence[Tensor]
) -> LayerOutput:
    """`Backend.forward` of tensors of float32 or float64."""
    cut = _plan(layer, rows)
    if not cut.fused:
        return layer_forward(KERNELS, layer, rows, x, h0, weights)
    recipe = _forward_recipe(x.element_size(), layer, rows[:3], cut)
    y = x.new_empty((rows.N, layer.num_directions * layer.hidden_size))
    h_n = torch.empty_like(h0)
    starts = None if rows.batch_sizes is None else offsets(rows, x.device)
    held = [w if w.is_contiguous() else w.contiguous() for w in weights]
    block = recipe.block[:]
    block[_F.x] = x.data_ptr()
    count = layer.weights_per_direction
    for d, first in enumerate((_F.w_ih_0, _F.w_ih_1)[: layer.num_directions]):
        for i, weight in enumerate(held[d * count : (d + 1) * count]):
            block[first + i] = weight.data_ptr()
    _run_forward(recipe, block, starts, h0, y, h_n)
    return LayerOutput(y, h_n)


class Kernels(Recurrence):
    """Recurrences by the compiled kernels, the rest of a layer being left to GEMMs."""

    def forward(self, call: Forward) -> None:
        """`y_t = activation(y_t + W_hh y_{t-1})` for each step."""
        size, (T, B, N, _) = call.y.element_size(), call.rows
        cut = _plan(call.layer, call.rows)
        recipe = _forward_recipe(size, call.layer, (T, B, N), cut)
        block = recipe.block[:]
        for field, w_hh in zip((_F.w_hh_0, _F.w_hh_1), call.w_hh, strict=False):
            block[field] = w_hh.data_ptr()
        _run_forward(recipe, block, call.starts, call.h0, call.y, call.h_n)

    def backward(self, call: Backward) -> None:
        """`dz_t = (g_t + grad_y_t) activation'(y_t)`, `g_{t-1} = dz_t W_hh` for each step."""
        size, (T, B, N, _) = call.y.element_size(), call.rows
        cut = _plan(call.layer, call.rows)
        recipe = _backward_recipe(size, call.layer, (T, B, N), cut)
        scratch = call.y.new_empty(recipe.scratch)
        block = recipe.block[:]
        block[_B.starts], block[_B.scratch] = call.starts.data_ptr(), scratch.data_ptr()
        block[_B.y], block[_B.dz] = call.y.data_ptr(), call.dz.data_ptr()
        block[_B.grad_y], block[_B.grad_h_n] = _address(call.grad_y), _address(call.grad_h_n)
        block[_B.grad_h0] = call.grad_h0.data_ptr()
        for field, w_hh in zip((_B.w_hh_0, _B.w_hh_1), call.w_hh, strict=False):
            block[field] = w_hh.data_ptr()
        recipe.kernel(block, recipe.threads)


KERNELS = Kernels()


def _run_forward(
    recipe: Recipe, block: array[int], starts: Tensor | None, h0: Tensor, y: Tensor, h_n: Tensor
) -> None:
    """Fill in what both kinds of forward call have, and call the kernel."""
    scratch = y.new_empty(recipe.scratch)
    block[_F.starts], block[_F.scratch] = _address(starts), scratch.data_ptr()
    block[_F.h0], block[_F.y], block[_F.h_n] = h0.data_ptr(), y.data_ptr(), h_n.data_ptr()
    recipe.kernel(block, recipe.threads)


def _plan(layer: LayerSpec, rows: Rows) -> Plan:
    return _planned(layer, rows[:3], most_threads(torch.get_num_threads()))


@lru_cache(maxsize=4096)
def _planned(layer: LayerSpec, rows: tuple[int, int, int], threads: int) -> Plan:
    return plan(layer, Rows(*rows), threads)


@lru_cache(maxsize=1024)
def _forward_recipe(size: int, layer: LayerSpec, rows: tuple[int, int, int], cut: Plan) -> Recipe:
    kernels = library(8 * size)
    lanes = kernels.isa.vector_bytes // size
    wide = -(-layer.hidden_size // lanes)
    inputs = layer.input_size if cut.fused else 0
    panel = (inputs + layer.hidden_size) * lanes
    packed = wide * (panel + lanes)
    fixed = _problem(layer, rows, cut) | {"I": inputs, "panel": panel, "packed": packed}
    block = array("q", [fixed.get(field, 0) for field in ForwardArguments._fields])
    return Recipe(kernels.forward, cut.threads, block, layer.num_directions * packed)


@lru_cache(maxsize=1024)
def _backward_recipe(size: int, layer: LayerSpec, rows: tuple[int, int, int], cut: Plan) -> Recipe:
    kernels = library(8 * size)
    lanes = kernels.isa.vector_bytes // size
    wide = -(-layer.hidden_size // lanes)
    panel = layer.hidden_size * lanes
    packed = wide * (panel + lanes)
    fixed = _problem(layer, rows, cut) | {"panel": panel, "packed": packed}
    block = array("q", [fixed.get(field, 0) for field in BackwardArguments._fields])
    return Recipe(kernels.backward, cut.threads, block, layer.num_directions * packed)


def _problem(layer: LayerSpec, rows: tuple[int, int, int], cut: Plan) -> dict[str, int]:
    """The sizes that both kernels are told."""
    T, B, _ = rows
    return {
        "T": T,
        "B": B,
        "H": layer.hidden_size,
        "D": layer.num_directions,
        "cell": CELLS[layer.cell],
        "slices": cut.slices,
        "slice_rows": cut.slice_rows,
        "every": cut.every,
    }


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()

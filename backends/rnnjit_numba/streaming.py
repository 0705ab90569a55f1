"""Streaming: one time step of a stack per call, over argument blocks that are filled once.

A stepper belongs to one stream. It reuses the argument blocks, the buffers between layers and the
memory for packed weights, and so a step allocates nothing. Every step reads the weights anew.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from rnnjit import LayerSpec
from rnnjit.backend import States, Stepper
from rnnjit.codegen.argument_block import pointers
from rnnjit.codegen.forward_call import Recipe, scratch_address
from rnnjit.runtime.openmp import most_threads
from rnnjit_numba.arguments import ForwardArguments
from rnnjit_numba.run import FIELDS, forward_recipe

_SYNC = ForwardArguments._fields.index("sync")


class _Layer(NamedTuple):
    """A layer of a stream.

    Attributes:
        recipe: how its step is computed.
        block: its argument block.
        zeros: the initial content of the memory by which threads synchronise.
        y: the layer's output, for all but the last.
        scratch: kept alive for the block, which holds its address.
        first, last: the range of its weights among those of all layers.
        offset: of its state among the states of all layers, in bytes.
    """

    recipe: Recipe
    block: array[int]
    zeros: array[int]
    y: Tensor | None
    scratch: Tensor | None
    first: int
    last: int
    offset: int


def stepper(dtype: torch.dtype, layers: Sequence[LayerSpec], batch: int) -> Stepper:
    """`Backend.stepper` for a stack of one direction."""
    threads = most_threads(torch.get_num_threads())
    stack = [_layer(dtype, layers, index, batch, threads) for index in range(len(layers))]
    kind = layers[0].bias, layers[0].num_directions
    write, at, behind = pointers(*kind).pack_into, 8 * FIELDS.x, _SYNC + 1

    def step(x: Tensor, hx: States, h_n: States, y: Tensor, weights: tuple[Tensor, ...]) -> None:
        before, after = hx[0].data_ptr(), h_n[0].data_ptr()
        addresses = [weight.data_ptr() for weight in weights]
        source = x.data_ptr()
        for recipe, block, zeros, between, _, first, last, offset in stack:
            to = y.data_ptr() if between is None else between.data_ptr()
            own = addresses[first:last]
            write(block, at, source, before + offset, to, after + offset, *own)
            if zeros:
                block[behind : behind + len(zeros)] = zeros
            recipe.kernel(block, recipe.threads, recipe.late_threads)
            source = to

    return step


def _layer(
    dtype: torch.dtype, layers: Sequence[LayerSpec], index: int, batch: int, threads: int
) -> _Layer:
    layer, size = layers[index], dtype.itemsize
    recipe = forward_recipe(size, layer, 1, batch, batch, threads)
    block = recipe.block[:]
    scratch = None
    if not recipe.inside:
        scratch = torch.empty(recipe.scratch, dtype=dtype, device="cpu")
    block[FIELDS.scratch] = scratch_address(recipe, block, scratch)
    last = index == len(layers) - 1
    y = None if last else torch.empty(batch, layer.hidden_size, dtype=dtype, device="cpu")
    count = layer.weights_per_direction
    offset = index * batch * layer.hidden_size * size
    zeros = array("q", [0] * recipe.sync_words)
    return _Layer(recipe, block, zeros, y, scratch, index * count, (index + 1) * count, offset)

"""One step after the other of a stack, over argument blocks that are filled once.

A stepper belongs to one stream: it keeps the blocks, the memory between layers and the packed
weights' room from step to step, and so it allocates nothing. Weights themselves are read anew.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from rnnjit import LayerSpec
from rnnjit.backend import Stepper
from rnnjit.team import most_threads
from rnnjit_numba.arguments import ForwardArguments
from rnnjit_numba.run import Recipe, forward_recipe, pointers

_F = ForwardArguments(*range(len(ForwardArguments._fields)))


class _Layer(NamedTuple):
    """A layer of a stream.

    Attributes:
        recipe: how its step is computed.
        block: its argument block.
        unmet: what it holds at first where threads meet.
        y: the layer's output, for all but the last.
        scratch: kept alive for the block, which holds its address.
        first, last: where its weights are among all.
        offset: of its state among the states of all layers, in bytes.
    """

    recipe: Recipe
    block: array[int]
    unmet: array[int]
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
    write, at, sync = pointers(*kind).pack_into, 8 * _F.x, _F.sync

    def step(x: Tensor, h0: Tensor, h_n: Tensor, y: Tensor, weights: tuple[Tensor, ...]) -> None:
        before, after = h0.data_ptr(), h_n.data_ptr()
        addresses = [weight.data_ptr() for weight in weights]
        source = x.data_ptr()
        for recipe, block, unmet, between, _, first, last, offset in stack:
            to = y.data_ptr() if between is None else between.data_ptr()
            own = addresses[first:last]
            write(block, at, source, before + offset, to, after + offset, *own)
            if unmet:
                block[sync + 1 : sync + 1 + len(unmet)] = unmet
            recipe.kernel(block, sync, recipe.threads)
            source = to

    return step


def _layer(
    dtype: torch.dtype, layers: Sequence[LayerSpec], index: int, batch: int, threads: int
) -> _Layer:
    layer, size = layers[index], dtype.itemsize
    recipe = forward_recipe(8 * size, layer, 1, batch, batch, threads)
    block = recipe.block[:]
    scratch = None if recipe.inside else torch.empty(recipe.scratch // size, dtype=dtype)
    inside = block.buffer_info()[0] + recipe.inside
    block[_F.scratch] = inside if scratch is None else scratch.data_ptr()
    last = index == len(layers) - 1
    y = None if last else torch.empty(batch, layer.hidden_size, dtype=dtype)
    count = layer.weights_per_direction
    offset = index * batch * layer.hidden_size * size
    unmet = array("q", [0] * recipe.meeting)
    return _Layer(recipe, block, unmet, y, scratch, index * count, (index + 1) * count, offset)

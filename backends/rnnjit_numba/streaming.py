"""Streaming: one time step of a stack per call, over argument blocks that are filled once.

A stepper belongs to one stream. It reuses the argument blocks, the buffers between layers and the
memory for packed weights, and so a step allocates nothing, except for states that the kernel
computes in a wider dtype than the stream's. Every step reads the weights anew.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from rnnjit import LayerSpec
from rnnjit.backend import States, Stepper
from rnnjit.codegen.computed import computed
from rnnjit.codegen.forward_call import Recipe, scratch_address, writer
from rnnjit.runtime.openmp import most_threads
from rnnjit_numba.arguments import FIELDS, ForwardArguments, argument_count
from rnnjit_numba.run import forward_recipe


class _Layer(NamedTuple):
    """A layer of a stream.

    Attributes:
        recipe: how its step is computed.
        block: its argument block.
        zeros: the initial content of the memory by which threads synchronise.
        y: the layer's output, for all but the last.
        scratch: kept alive for the block, which holds its address.
        first, last: the range of its weights among those of all layers.
        offsets: of each of its states among those of all layers, in bytes.
    """

    recipe: Recipe
    block: array[int]
    zeros: array[int]
    y: Tensor | None
    scratch: Tensor | None
    first: int
    last: int
    offsets: tuple[int, ...]


def stepper(dtype: torch.dtype, layers: Sequence[LayerSpec], batch: int) -> Stepper:
    """`Backend.stepper` for a stack of one direction."""
    threads = most_threads(torch.get_num_threads())
    stack = [_layer(dtype, layers, index, batch, threads) for index in range(len(layers))]
    write = [writer(FIELDS, layer) for layer in layers]
    behind = argument_count(ForwardArguments, layers[0].cell, quantized=layers[0].quantized)

    def step(x: Tensor, hx: States, h_n: States, y: Tensor, weights: tuple[Tensor, ...]) -> None:
        starts = [state.data_ptr() for state in hx]
        ends = [state.data_ptr() for state in h_n]
        source = x.data_ptr()
        for fill, (recipe, block, zeros, between, _, first, last, offsets) in zip(
            write, stack, strict=True
        ):
            to = y.data_ptr() if between is None else between.data_ptr()
            before = [address + offset for address, offset in zip(starts, offsets, strict=True)]
            after = [address + offset for address, offset in zip(ends, offsets, strict=True)]
            fill(block, source, before, to, after, weights[first:last])
            if zeros:
                block[behind : behind + len(zeros)] = zeros
            recipe.kernel(block, recipe.threads, recipe.late_threads)
            source = to

    return step


def _layer(
    dtype: torch.dtype, layers: Sequence[LayerSpec], index: int, batch: int, threads: int
) -> _Layer:
    layer, size = layers[index], dtype.itemsize
    recipe = forward_recipe(dtype, layer, 1, batch, batch, threads)
    block = recipe.block[:]
    scratch = None
    if not recipe.inside:
        scratch = torch.empty(recipe.scratch, dtype=dtype, device="cpu")
    block[FIELDS.scratch] = scratch_address(recipe, block, scratch)
    last = index == len(layers) - 1
    y = None if last else torch.empty(batch, layer.output_size, dtype=dtype, device="cpu")
    count = layer.weights_per_direction
    sizes = (size, *[computed(dtype).itemsize] * (len(layer.state_sizes) - 1))
    offsets = tuple(
        index * batch * features * each
        for features, each in zip(layer.state_sizes, sizes, strict=True)
    )
    zeros = array("q", [0] * recipe.sync_words)
    return _Layer(recipe, block, zeros, y, scratch, index * count, (index + 1) * count, offsets)

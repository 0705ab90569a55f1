"""From tensors to a forward kernel's argument block, for one layer and for a stack."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from rnnjit.backend import LayerOutput, Shortcut, States
from rnnjit.codegen.argument_block import pointers
from rnnjit.codegen.kernel import Kernel
from rnnjit.spec import LayerSpec


class Recipe(NamedTuple):
    """All of a kernel's call that does not depend on its tensors.

    Attributes:
        kernel: what to call.
        threads: size of the team.
        block: the argument block with every size filled in, and memory behind the arguments; copied
            for each call, since kernels write to that memory.
        scratch: elements of scratch memory.
        inside: where in the block the scratch is, in bytes; 0 if it is allocated for each call.
        sync_words: int64 words of the block by which threads synchronise: zero at first.
        parts: where in the scratch its further parts begin, in bytes.
    """

    kernel: Kernel
    threads: int
    block: array[int]
    scratch: int
    inside: int = 0
    sync_words: int = 0
    parts: tuple[int, ...] = ()


class ForwardFields(NamedTuple):
    """Where a forward kernel's block has the addresses that change with every call.

    Attributes:
        x: index of the first of x, h0, y, h_n and the weights, see `argument_block.pointers`.
        rows: index of what says where rows are, if they are packed.
        scratch: index of the scratch memory.
    """

    x: int
    rows: int
    scratch: int


def forward(
    recipe: Recipe,
    fields: ForwardFields,
    layer: LayerSpec,
    x: Tensor,
    h0: Tensor,
    weights: Sequence[Tensor],
    rows: Tensor | None,
) -> LayerOutput:
    """Allocate the outputs of a layer, and call its kernel.

    Args:
        recipe: how the kernel is called.
        fields: of its argument block.
        layer: what the layer is.
        x: `[N, I]`, contiguous.
        h0: `[D, B, H]`, contiguous.
        weights: for each direction w_ih, w_hh and then maybe b_ih, b_hh; any strides.
        rows: the table that says where rows are; None if dense.
    """
    y = x.new_empty((x.shape[0], layer.num_directions * layer.hidden_size))
    h_n = torch.empty_like(h0)
    held = [w if w.is_contiguous() else w.contiguous() for w in weights]
    block = recipe.block[:]
    pointers(layer.bias, layer.num_directions).pack_into(
        *(block, 8 * fields.x, x.data_ptr(), h0.data_ptr(), y.data_ptr(), h_n.data_ptr()),
        *[weight.data_ptr() for weight in held],
    )
    if rows is not None:
        block[fields.rows] = rows.data_ptr()
    scratch = None if recipe.inside else x.new_empty(recipe.scratch)
    block[fields.scratch] = scratch_address(recipe, block, scratch)
    recipe.kernel(block, recipe.threads)
    return LayerOutput(y, (h_n,))


def scratch_address(recipe: Recipe, block: array[int], scratch: Tensor | None) -> int:
    """Where the scratch memory is: behind a block's arguments if none was allocated."""
    if scratch is None:
        return block.buffer_info()[0] + recipe.inside
    return scratch.data_ptr()


def shortcut(
    recipes: Sequence[Recipe],
    fields: ForwardFields,
    layers: Sequence[LayerSpec],
    B: int,
    itemsize: int,
    y_shape: tuple[int, int, int],
) -> Shortcut:
    """`Backend.shortcut`: the layers' kernels, with nothing but allocations around them.

    Args:
        recipes: how each layer's kernel is called.
        fields: of its argument block.
        layers: of the stack.
        B: sequences of the batch.
        itemsize: bytes of an element.
        y_shape: of y.
    """
    first = layers[0]
    state = first.num_directions * B * first.hidden_size * itemsize
    stack = []
    for i, (recipe, layer) in enumerate(zip(recipes, layers, strict=True)):
        count = layer.num_directions * layer.weights_per_direction
        stack.append((recipe, i * state, i * count, (i + 1) * count))
    # empty_like is the quickest way to allocate, where y has the state's shape.
    like_state = y_shape == (1, B, first.hidden_size) and len(layers) == 1
    write = pointers(first.bias, first.num_directions).pack_into
    at, scratch_field, empty_like = 8 * fields.x, fields.scratch, torch.empty_like

    def run(x: Tensor, hx: States, weights: tuple[Tensor, ...]) -> tuple[Tensor, States]:
        (h0,) = hx
        h_n = empty_like(h0)
        h0_address, h_n_address = h0.data_ptr(), h_n.data_ptr()
        addresses = [weight.data_ptr() for weight in weights]
        y = x
        for recipe, offset, start, stop in stack:
            x, y = y, empty_like(h0) if like_state else x.new_empty(y_shape)
            block = recipe.block[:]
            write(
                *(block, at, x.data_ptr(), h0_address + offset, y.data_ptr()),
                *(h_n_address + offset, *addresses[start:stop]),
            )
            if recipe.inside:
                block[scratch_field] = block.buffer_info()[0] + recipe.inside
                recipe.kernel(block, recipe.threads)
                continue
            scratch = x.new_empty(recipe.scratch)
            block[scratch_field] = scratch.data_ptr()
            recipe.kernel(block, recipe.threads)
        return y, (h_n,)

    return run

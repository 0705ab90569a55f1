"""Calls forward kernels: fills their argument blocks from tensors, for a layer or a stack."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from rnnjit.backend import LayerOutput, Shortcut, States
from rnnjit.codegen.argument_block import pointers
from rnnjit.codegen.kernel import Kernel
from rnnjit.codegen.scratch_memory import KEPT_FROM, SCRATCH
from rnnjit.runtime.late_threads import LateThreads
from rnnjit.spec import LayerSpec


class Recipe(NamedTuple):
    """The parts of a kernel's call that do not depend on its tensors.

    Attributes:
        kernel: the kernel.
        threads: size of the thread team.
        block: the argument block with all sizes filled in, followed by working memory. It is copied
            for each call, since kernels write to that memory.
        scratch: elements of scratch memory.
        inside: byte offset of the scratch in the block; 0 if it is allocated for each call.
        sync_words: int64 words of the block that threads synchronise on; initially zero.
        parts: byte offsets of further parts in the scratch.
        late_threads: what is known of calls of this size; None if it is planned for one thread.
    """

    kernel: Kernel
    threads: int
    block: array[int]
    scratch: int
    inside: int = 0
    sync_words: int = 0
    parts: tuple[int, ...] = ()
    late_threads: LateThreads | None = None


class ForwardFields(NamedTuple):
    """The indices of what changes with every call in a forward kernel's block.

    Attributes:
        N: index of the number of rows.
        x: index of the address of x; h0, y, h_n and the weights follow, see
            `argument_block.pointers`.
        rows: index of the address of the row table of a packed batch.
        scratch: index of the address of the scratch memory.
    """

    N: int
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
        recipe: how to call the kernel, for rows that are `row_slices.alike`.
        fields: the indices of its argument block.
        layer: the configuration of the layer.
        x: `[N, I]`, contiguous.
        h0: `[D, B, H]`, contiguous.
        weights: for each direction w_ih, w_hh and, with biases, b_ih, b_hh; any strides.
        rows: the row table of a packed batch; None if dense.
    """
    y = x.new_empty(len(x), layer.num_directions * layer.hidden_size)
    h_n = torch.empty_like(h0)
    held = [w if w.is_contiguous() else w.contiguous() for w in weights]
    block = recipe.block[:]
    pointers(layer.bias, layer.num_directions).pack_into(
        *(block, 8 * fields.x, x.data_ptr(), h0.data_ptr(), y.data_ptr(), h_n.data_ptr()),
        *[weight.data_ptr() for weight in held],
    )
    if rows is not None:
        block[fields.N], block[fields.rows] = x.shape[0], rows.data_ptr()
    size = 0 if recipe.inside else recipe.scratch * x.element_size()
    kept = SCRATCH.take(size) if size >= KEPT_FROM else None
    scratch = x.new_empty(recipe.scratch) if size and kept is None else kept
    block[fields.scratch] = scratch_address(recipe, block, scratch)
    recipe.kernel(block, recipe.threads, recipe.late_threads)
    if kept is not None:
        SCRATCH.give(kept)
    return LayerOutput(y, (h_n,))


def scratch_address(recipe: Recipe, block: array[int], scratch: Tensor | None) -> int:
    """The address of the scratch memory: inside the block if no tensor was allocated."""
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
    """`Backend.shortcut`: calls the kernel of each layer, with no overhead except allocations.

    Args:
        recipes: how to call the kernel of each layer.
        fields: the indices of its argument block.
        layers: the layers of the stack.
        B: batch size.
        itemsize: bytes of an element.
        y_shape: shape of y, as in `Backend.shortcut`.
    """
    if len(layers) == 1:
        return _one_layer(recipes[0], fields, layers[0], B, itemsize, y_shape)
    first = layers[0]
    state = first.num_directions * B * first.hidden_size * itemsize
    stack = []
    for i, (recipe, layer) in enumerate(zip(recipes, layers, strict=True)):
        count = layer.num_directions * layer.weights_per_direction
        stack.append((recipe, i * state, i * count, (i + 1) * count))
    write = pointers(first.bias, first.num_directions).pack_into
    at, scratch_field, empty_like = 8 * fields.x, fields.scratch, torch.empty_like
    take, give = SCRATCH.take, SCRATCH.give

    def run(x: Tensor, hx: States, weights: tuple[Tensor, ...]) -> tuple[Tensor, States]:
        (h0,) = hx
        h_n = empty_like(h0)
        h0_address, h_n_address = h0.data_ptr(), h_n.data_ptr()
        addresses = [weight.data_ptr() for weight in weights]
        y = x
        for recipe, offset, start, stop in stack:
            x, y = y, x.new_empty(y_shape)
            block = recipe.block[:]
            write(
                *(block, at, x.data_ptr(), h0_address + offset, y.data_ptr()),
                *(h_n_address + offset, *addresses[start:stop]),
            )
            if recipe.inside:
                block[scratch_field] = block.buffer_info()[0] + recipe.inside
                recipe.kernel(block, recipe.threads, recipe.late_threads)
                continue
            size = recipe.scratch * itemsize
            scratch = take(size) if size >= KEPT_FROM else x.new_empty(recipe.scratch)
            block[scratch_field] = scratch.data_ptr()
            recipe.kernel(block, recipe.threads, recipe.late_threads)
            if size >= KEPT_FROM:
                give(scratch)
        return y, (h_n,)

    return run


def _one_layer(
    recipe: Recipe,
    fields: ForwardFields,
    layer: LayerSpec,
    B: int,
    itemsize: int,
    y_shape: tuple[int, int, int],
) -> Shortcut:
    """`shortcut` for a stack of one layer."""
    kernel, threads, late_threads = recipe.kernel, recipe.threads, recipe.late_threads
    template, inside, elements = recipe.block, recipe.inside, recipe.scratch
    write = pointers(layer.bias, layer.num_directions).pack_into
    at, scratch_field, empty_like = 8 * fields.x, fields.scratch, torch.empty_like
    # empty_like is the fastest way to allocate, but needs a y of the state's shape.
    like_state = y_shape == (1, B, layer.hidden_size)
    size = 0 if inside else elements * itemsize
    take, give = SCRATCH.take, SCRATCH.give

    def run(x: Tensor, hx: States, weights: tuple[Tensor, ...]) -> tuple[Tensor, States]:
        (h0,) = hx
        h_n = empty_like(h0)
        y = empty_like(h0) if like_state else x.new_empty(*y_shape)
        block = template[:]
        write(
            *(block, at, x.data_ptr(), h0.data_ptr(), y.data_ptr(), h_n.data_ptr()),
            *[weight.data_ptr() for weight in weights],
        )
        if inside:
            block[scratch_field] = block.buffer_info()[0] + inside
        else:
            scratch = take(size) if size >= KEPT_FROM else x.new_empty(elements)
            block[scratch_field] = scratch.data_ptr()
        kernel(block, threads, late_threads)
        if size >= KEPT_FROM:
            give(scratch)
        return y, (h_n,)

    return run

"""Calls backward kernels: allocates the gradients, and fills argument blocks from tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from struct import Struct
from typing import NamedTuple

import torch
from torch import Tensor

from rnnjit.backend import LayerGrads, Needs, Shortcut, States, Training
from rnnjit.codegen.forward_call import Recipe
from rnnjit.codegen.scratch_memory import KEPT_FROM, SCRATCH
from rnnjit.spec import LayerSpec

#: `(x, h0, weights, y, grad_y, grad_h_n, table)`: the gradients of a layer, see `bound`.
BackwardCall = Callable[
    [Tensor, Tensor, Sequence[Tensor], Tensor, Tensor | None, Tensor | None, Tensor | None],
    LayerGrads,
]
_READ, _WRITTEN = Struct("=9q"), {1: Struct("=5q"), 2: Struct("=8q")}


class BackwardFields(NamedTuple):
    """The indices of what changes with every call in a backward kernel's block.

    Attributes:
        x: index of the address of x; h0, y, w_ih and w_hh of both directions, grad_y and grad_h_n
            follow.
        grad_x: index of the address of grad_x; grad_h0 and, for both directions, dW_ih, dW_hh and
            db follow.
        rows: index of the address of the row table of a packed batch.
    """

    x: int
    grad_x: int
    rows: int


class Wanted(NamedTuple):
    """Which gradients of its weights a layer's kernel computes.

    Both biases of a direction have the same gradient, db.

    Attributes:
        shapes: for each direction those of dW_ih, dW_hh and db, or None for what is needed in no
            direction.
        of: for each weight, where its gradient stands among those, or None if none is needed.
        copied: the indices of the weights that get a copy, since another one has the original.
    """

    shapes: tuple[tuple[int, ...] | None, ...]
    of: tuple[int | None, ...]
    copied: tuple[int, ...]


def wanted(layer: LayerSpec, needed: tuple[bool, ...]) -> Wanted:
    """What to compute for the weights that need a gradient.

    Args:
        layer: the configuration of the layer.
        needed: for each of its weights, whether it needs one.
    """
    I, H, count = layer.input_size, layer.hidden_size, layer.weights_per_direction
    w_ih, w_hh, *biases = (any(needed[i::count]) for i in range(count))
    kinds = (((H, I), w_ih), ((H, H), w_hh), ((H,), any(biases)))
    shapes = [shape if want else None for shape, want in kinds]
    of = tuple(
        3 * (i // count) + min(i % count, 2) if need else None for i, need in enumerate(needed)
    )
    copied = tuple(i for i, at in enumerate(of) if at is not None and at in of[:i])
    return Wanted(tuple(shapes * layer.num_directions), of, copied)


def bound(
    recipe: Recipe,
    fields: BackwardFields,
    scratch: int,
    itemsize: int,
    places: Sequence[tuple[int, int]],
    layer: LayerSpec,
    rows: int,
    needs: Needs,
) -> BackwardCall:
    """A function that calls a layer's backward kernel, with no overhead except allocations.

    Args:
        recipe: how to call the kernel.
        fields: the indices of its argument block.
        scratch: elements of memory that each call needs.
        itemsize: bytes of an element.
        places: the index of each address of a part of it, and the part's offset in bytes.
        layer: the configuration of the layer.
        rows: the number of rows.
        needs: which gradients to compute.

    Returns:
        A function of x `[N, I]` or `[T, B, I]`, h0, the weights (all contiguous), y `[N, D*H]` or
        `[T, B, D*H]`, the gradients of y and h_n or None, and the row table of a packed batch or
        None. The gradient of x has the form of x. No two gradients share memory.
    """
    count, directions = layer.weights_per_direction, layer.num_directions
    shapes, of, copied = wanted(layer, needs.weights)
    recurrent = (0, 1) if directions == 1 else (0, 1, count, count + 1)
    absent = (0,) * (4 - len(recurrent))
    # Without rows to sum, the kernel writes nothing.
    empty_like, allocate = torch.empty_like, Tensor.new_empty if rows else Tensor.new_zeros
    write_read, write_written = _READ.pack_into, _WRITTEN[directions].pack_into
    at_x, at_grad_x, at_rows = 8 * fields.x, 8 * fields.grad_x, fields.rows
    needs_x, (needs_h0,) = needs.x, needs.hx
    kernel, threads, late_threads = recipe.kernel, recipe.threads, recipe.late_threads
    template, size = recipe.block, scratch * itemsize
    take, give = SCRATCH.take, SCRATCH.give

    def run(
        x: Tensor,
        h0: Tensor,
        weights: Sequence[Tensor],
        y: Tensor,
        grad_y: Tensor | None,
        grad_h_n: Tensor | None,
        table: Tensor | None,
    ) -> LayerGrads:
        grad_x = empty_like(x) if needs_x else None
        grad_h0 = empty_like(h0) if needs_h0 else None
        grads = [None if shape is None else allocate(x, *shape) for shape in shapes]
        grad_y = None if grad_y is None else grad_y.contiguous()
        grad_h_n = None if grad_h_n is None else grad_h_n.contiguous()
        memory = take(size) if size >= KEPT_FROM else x.new_empty(scratch)
        start, block = memory.data_ptr(), template[:]
        write_read(
            *(block, at_x, x.data_ptr(), h0.data_ptr(), y.data_ptr()),
            *[weights[i].data_ptr() for i in recurrent],
            *absent,
            0 if grad_y is None else grad_y.data_ptr(),
            0 if grad_h_n is None else grad_h_n.data_ptr(),
        )
        write_written(
            *(block, at_grad_x),
            0 if grad_x is None else grad_x.data_ptr(),
            0 if grad_h0 is None else grad_h0.data_ptr(),
            *[0 if grad is None else grad.data_ptr() for grad in grads],
        )
        for index, offset in places:
            block[index] = start + offset
        if table is not None:
            block[at_rows] = table.data_ptr()
        kernel(block, threads, late_threads)
        if size >= KEPT_FROM:
            give(memory)
        own = [None if at is None else grads[at] for at in of]
        for i in copied:
            own[i] = _copy(own[i])
        return LayerGrads(grad_x, (grad_h0,), tuple(own))

    return run


def _copy(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.clone()


def training(forward: Shortcut, backward: BackwardCall) -> Training:
    """`Backend.training` of a layer of one state.

    Args:
        forward: runs the forward pass.
        backward: runs the backward pass.
    """

    def run(
        x: Tensor,
        hx: States,
        weights: Sequence[Tensor],
        y: Tensor,
        grad_y: Tensor | None,
        grad_h_n: tuple[Tensor | None, ...],
    ) -> LayerGrads:
        return backward(x, hx[0], weights, y, grad_y, grad_h_n[0], None)

    return Training(forward, run)

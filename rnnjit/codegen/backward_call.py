"""Calls backward kernels: allocates the gradients, and fills argument blocks from tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from struct import Struct
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rnnjit.backend import LayerForward, LayerGrads, Needs, States, Training
from rnnjit.codegen.argument_block import address_of, check_memory
from rnnjit.codegen.cell_layout import CellLayout
from rnnjit.codegen.computed import computed, rounded, widened
from rnnjit.codegen.forward_call import Recipe, saved_pointers, saved_sizes, split_pointers
from rnnjit.codegen.scratch_memory import KEPT_FROM, SCRATCH
from rnnjit.runtime import huge_pages
from rnnjit.spec import LayerSpec

#: `(x, hx, weights, y, saved, grad_y, grad_h_n, grad_states, table)`: a layer's gradients, see
#: `bound`.
BackwardCall = Callable[
    [
        Tensor,
        States,
        Sequence[Tensor],
        Tensor,
        tuple[Tensor, ...],
        Tensor | None,
        tuple[Tensor | None, ...],
        tuple[Tensor | None, ...],
        Tensor | None,
    ],
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
        more: index of the addresses that `more_pointers` writes; 0 if the kernels do not take them.
    """

    x: int
    grad_x: int
    rows: int
    more: int = 0


class Wanted(NamedTuple):
    """Which gradients of its weights a layer's kernel computes.

    Both biases of a direction have the same gradient, db, if the cell uses only sums of zx and zh.

    Attributes:
        shapes: for each direction those of dW_ih, dW_hh and db; then, direction by direction, those
            of `extra`. None for what is needed in no direction.
        of: for each weight, where its gradient stands among those, or None if none is needed or it
            is zero.
        copied: the indices of the weights that get a copy, since another one has the original.
        zeros: the indices and shapes of the weights whose gradient is zero, since the cell does
            not use them.
        extra: how many more gradients a direction has: db_hh, where it is not that of b_ih, dW_hr,
            and those of the parameters that get one.
    """

    shapes: tuple[tuple[int, ...] | None, ...]
    of: tuple[int | None, ...]
    copied: tuple[int, ...]
    zeros: tuple[tuple[int, torch.Size], ...]
    extra: int


def biases_differ(layer: LayerSpec) -> bool:
    """Whether each of the two biases of a direction has a gradient of its own."""
    return layer.bias and CellLayout(layer.cell).apart


def graded_parameters(layer: LayerSpec) -> list[int]:
    """The numbers of the cell's parameters that a gradient reaches."""
    blocks = CellLayout(layer.cell).parameter_blocks
    return [k for k, block in enumerate(blocks) if block is not None]


def wanted(layer: LayerSpec, needed: tuple[bool, ...]) -> Wanted:
    """What to compute for the weights that need a gradient.

    Args:
        layer: the configuration of the layer.
        needed: for each of its weights, whether it needs one.
    """
    count, D, differ = layer.weights_per_direction, layer.num_directions, biases_differ(layer)
    wants = [any(needed[i::count]) for i in range(count)]
    biases, first = (2, 3) if layer.bias else (), count - len(layer.cell.parameters)
    product = layer.cell.has_product
    # For each gradient of a direction the weights that have it.
    main = [(0,), (1,) if product else (), biases[:1] if differ or not product else biases]
    extra = [biases[1:]] if differ else []
    extra += [(first - 1,)] if layer.proj_size else []
    extra += [(first + k,) for k in graded_parameters(layer)]
    place = {}
    for k, members in enumerate(main):
        place.update(dict.fromkeys(members, (3, k)))
    for k, members in enumerate(extra):
        place.update({i: (len(extra), k) for i in members})
    shapes = [_shape(layer, members, wants) for members in main] * D
    shapes += [_shape(layer, members, wants) for members in extra] * D

    def where(i: int) -> int:
        (width, k), direction = place[i % count], i // count
        start = 3 * D if i % count in {i for members in extra for i in members} else 0
        return start + direction * width + k

    has = [need and i % count in place for i, need in enumerate(needed)]
    of = tuple(where(i) if found else None for i, found in enumerate(has))
    copied = tuple(i for i, at in enumerate(of) if at is not None and at in of[:i])
    unused = [i for i, need in enumerate(needed) if need and not has[i]]
    zeros = tuple((i, layer.weight_shapes[i % count]) for i in unused)
    return Wanted(tuple(shapes), of, copied, zeros, len(extra))


def _shape(
    layer: LayerSpec, members: Sequence[int], wants: Sequence[bool]
) -> tuple[int, ...] | None:
    """The shape of the gradient of some weights of a direction; None if none of them needs it."""
    if not any(wants[i] for i in members):
        return None
    return tuple(layer.weight_shapes[members[0]])


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
        A function of x `[N, features]` or `[T, B, features]`, hx, the weights (all contiguous), y
        `[N, D*P]` or `[T, B, D*P]`, what the forward pass saved, the gradients of y and of the last
        states or None, those of the states but the first after every step, one None for each or
        nothing for zeros, and the row table of a packed batch or None. The gradient of x has the
        form of x. No two gradients share memory.
    """
    count, directions = layer.weights_per_direction, layer.num_directions
    shapes, of, copied, zeros, extra = wanted(layer, needs.weights)
    recurrent = (0, 1) if directions == 1 else (0, 1, count, count + 1)
    absent = (0,) * (4 - len(recurrent))
    # Without rows to sum, the kernel writes nothing.
    empty_like, allocate = torch.empty_like, Tensor.new_empty if rows else Tensor.new_zeros
    write_read, write_written = _READ.pack_into, _WRITTEN[directions].pack_into
    at_x, at_grad_x, at_rows = 8 * fields.x, 8 * fields.grad_x, fields.rows
    needs_x, (needs_h0, *needs_others) = needs.x, needs.hx
    large = rows * layer.features * itemsize >= huge_pages.LARGE
    new_grad_x = huge_pages.empty_like if large else empty_like
    kernel, threads, late_threads = recipe.kernel, recipe.threads, recipe.late_threads
    template, size = recipe.block, scratch * itemsize
    take, give = SCRATCH.take, SCRATCH.give
    more, main = _more(fields, layer, extra), 3 * directions
    narrow = itemsize < 4

    def run(
        x: Tensor,
        hx: States,
        weights: Sequence[Tensor],
        y: Tensor,
        saved: tuple[Tensor, ...],
        grad_y: Tensor | None,
        grad_h_n: tuple[Tensor | None, ...],
        grad_states: tuple[Tensor | None, ...],
        table: Tensor | None,
    ) -> LayerGrads:
        grad_x, like, like_h0 = new_grad_x(x) if needs_x else None, x, hx[0]
        dtypes = [state.dtype for state in hx] if narrow else []
        if narrow:
            like = x.new_empty(0, dtype=computed(x.dtype))
            hx, grad_h_n = widened(hx), tuple([_wide(grad) for grad in grad_h_n])
            like_h0 = like.new_empty(hx[0].shape)
        h0, last = hx[0], grad_h_n[0]
        grad_h0 = empty_like(like_h0) if needs_h0 else None
        grads = [None if shape is None else allocate(like, *shape) for shape in shapes]
        grad_y = None if grad_y is None else grad_y.contiguous()
        last = None if last is None else last.contiguous()
        memory = take(size) if size >= KEPT_FROM else x.new_empty(scratch)
        start, block = memory.data_ptr(), template[:]
        read = [x.data_ptr(), h0.data_ptr(), y.data_ptr()]
        read += [weights[i].data_ptr() for i in recurrent]
        if 0 in read:
            check_memory(x, read[1:3], weights)
        write_read(
            *(block, at_x),
            *read,
            *absent,
            0 if grad_y is None else grad_y.data_ptr(),
            0 if last is None else last.data_ptr(),
        )
        write_written(
            *(block, at_grad_x),
            0 if grad_x is None else grad_x.data_ptr(),
            0 if grad_h0 is None else grad_h0.data_ptr(),
            *[0 if grad is None else grad.data_ptr() for grad in grads[:main]],
        )
        for index, offset in places:
            block[index] = start + offset
        if table is not None:
            block[at_rows] = table.data_ptr()
        others: list[Tensor | None] = []
        if more is not None:
            others = [
                empty_like(state) if need else None
                for state, need in zip(hx[1:], needs_others, strict=True)
            ]
            ends = [_contiguous(grad) for grad in grad_h_n[1:]]
            every = [_contiguous(grad) for grad in grad_states or (None,) * len(others)]
            more(block, hx, weights, saved, grads[main:], ends, others, every)
        kernel(block, threads, late_threads)
        if size >= KEPT_FROM:
            give(memory)
        own = [None if at is None else grads[at] for at in of]
        for i in copied:
            own[i] = _copy(own[i])
        for i, shape in zeros:
            own[i] = x.new_zeros(shape)
        if narrow:
            given = zip((grad_h0, *others), dtypes, strict=True)
            of_states = [rounded(grad, dtype) for grad, dtype in given]
            own = [rounded(grad, x.dtype) for grad in own]
            return LayerGrads(grad_x, tuple(of_states), tuple(own))
        return LayerGrads(grad_x, (grad_h0, *others), tuple(own))

    return run


def more_pointers(states: int, parameters: int) -> Struct:
    """The layout of the addresses of what only some cells have.

    They are, for both directions each, w_hr, db_hh and dW_hr; the saved values, and the outputs
    before the projection; for each state but the first its initial values, its values after every
    step, and the gradients of its last, its initial values, and those after every step; and the
    parameters of direction 0, those of direction 1, and their gradients in the same order.
    """
    return Struct(f"={8 + 5 * (states - 1) + 4 * parameters}q")


def _more(fields: BackwardFields, layer: LayerSpec, extra: int) -> Callable[..., None] | None:
    """Writes what a layer has beyond one state and four weights; None for a layer without it."""
    states, parameters = len(layer.cell.states), len(layer.cell.parameters)
    if not (saved_sizes(layer) or states > 1 or extra or parameters):
        return None
    write, at = more_pointers(states, parameters).pack_into, 8 * fields.more
    differ, projects = biases_differ(layer), bool(layer.proj_size)
    graded = {k: differ + projects + place for place, k in enumerate(graded_parameters(layer))}
    none = [0] * (2 * parameters)

    def of_both(found: Sequence[int]) -> tuple[int, ...]:
        return (*found, *found)[:2] if found else (0, 0)

    def more(
        block: Any,
        hx: States,
        weights: Sequence[Tensor],
        saved: tuple[Tensor, ...],
        grads: Sequence[Tensor | None],
        ends: Sequence[Tensor | None],
        starts: Sequence[Tensor | None],
        every: Sequence[Tensor | None],
    ) -> None:
        projections, of_cell = [0, 0], none
        if projects or parameters:
            _, projections, of_cell = split_pointers(layer, weights)
        found = [address_of(grad) for grad in grads]
        biases = found[::extra] if differ else ()
        projected = found[differ::extra] if projects else ()
        of_parameters = [
            found[start + graded[k]] if k in graded else 0
            for start in range(0, len(found), max(extra, 1))
            for k in range(parameters)
        ]
        values, outputs, recorded = saved_pointers(layer, saved)
        addresses: list[int] = []
        given = zip(hx[1:], recorded, ends, starts, every, strict=True)
        for state, after, *gradients in given:
            addresses += [state.data_ptr(), after, *map(address_of, gradients)]
        write(
            *(block, at, *projections, *of_both(biases), *of_both(projected)),
            *(values, outputs, *addresses, *of_cell),
            *(of_parameters + none)[: 2 * parameters],
        )

    return more


def _contiguous(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


def _wide(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.float()


def _copy(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.clone()


def training(forward: LayerForward, backward: BackwardCall) -> Training:
    """`Backend.training` of a layer.

    Args:
        forward: runs the forward pass.
        backward: runs the backward pass.
    """

    def run(
        x: Tensor,
        hx: States,
        weights: Sequence[Tensor],
        kept: tuple[Tensor, ...],
        grad_y: Tensor | None,
        grad_h_n: tuple[Tensor | None, ...],
    ) -> LayerGrads:
        return backward(x, hx, weights, kept[0], kept[1:], grad_y, grad_h_n, (), None)

    return Training(forward, run)

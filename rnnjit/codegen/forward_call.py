"""Calls forward kernels: fills their argument blocks from tensors, for a layer or a stack."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from math import prod
from struct import Struct
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rnnjit.backend import LayerOutput, Shortcut, States
from rnnjit.codegen.argument_block import address_of, check_memory, pointers
from rnnjit.codegen.computed import computed, narrowed, widened
from rnnjit.codegen.kernel import Kernel
from rnnjit.codegen.scratch_memory import KEPT_FROM, SCRATCH
from rnnjit.errors import FreedInputError
from rnnjit.runtime import huge_pages
from rnnjit.runtime.late_threads import LateThreads
from rnnjit.spec import LayerSpec

#: `(x, before, after, weights, y, saved, table)`: runs a layer's kernel, see `bound`.
ForwardCall = Callable[
    [
        Tensor,
        Sequence[int],
        Sequence[int],
        Sequence[Tensor],
        Tensor,
        tuple[Tensor | None, ...],
        Tensor | None,
    ],
    None,
]

#: Addresses of the scales and the sums of w_ih, w_hh and w_hr in two directions.
_INT8_ADDRESSES = 12


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
        more: index of the addresses that `more_pointers` writes; 0 if the kernels do not take them.
    """

    N: int
    x: int
    rows: int
    scratch: int
    more: int = 0


def saved_sizes(layer: LayerSpec) -> tuple[int, ...]:
    """The features of each tensor `[N, features]` that a forward pass saves beside y.

    They are, each with all directions side by side: the cell's saved values, one after the other,
    `D * len(cell.saved) * H`; then each state but the first, `D * H`; then, where there is a
    projection, the outputs before it, `D * H`. nn.RNN saves nothing.
    """
    cell, wide = layer.cell, layer.num_directions * layer.hidden_size
    values = [wide * len(cell.saved)] if cell.saved else []
    return (*values, *[wide] * (len(cell.states) - 1), *([wide] if layer.proj_size else []))


def new_saved(layer: LayerSpec, x: Tensor, rows: int) -> tuple[Tensor, ...]:
    """Memory for what a forward pass of some rows saves beside y."""
    sizes = saved_sizes(layer)
    if computed(x.dtype) is x.dtype:
        return tuple([huge_pages.new_empty(x, rows, size) for size in sizes])
    first = 1 if layer.cell.saved else 0
    states = range(first, first + len(layer.cell.states) - 1)
    return tuple(
        [
            _computed_empty(x, rows, size) if k in states else huge_pages.new_empty(x, rows, size)
            for k, size in enumerate(sizes)
        ]
    )


def _computed_empty(x: Tensor, rows: int, size: int) -> Tensor:
    """Memory for a state of every row, as it is computed with."""
    shape, dtype = (rows, size), computed(x.dtype)
    return huge_pages.advise(torch.empty(shape, dtype=dtype, device=x.device))


def states_alone(layer: LayerSpec, states: States) -> tuple[Tensor | None, ...]:
    """In the order of `saved_sizes`, the states alone, for a pass that records nothing else."""
    values = [None] if layer.cell.saved else []
    return (*values, *states, *([None] if layer.proj_size else []))


def saved_pointers(layer: LayerSpec, saved: Sequence[Tensor | None]) -> tuple[int, int, list[int]]:
    """The addresses of saved values, outputs before the projection, and states; 0 if absent."""
    if not saved:
        return 0, 0, [0] * (len(layer.cell.states) - 1)
    found = [address_of(tensor) for tensor in saved]
    values = found.pop(0) if layer.cell.saved else 0
    outputs = found.pop() if layer.proj_size else 0
    return values, outputs, found


def split_pointers(
    layer: LayerSpec, weights: Sequence[Tensor]
) -> tuple[list[int], list[int], list[int]]:
    """The addresses of a layer's weights.

    Returns:
        Those of matrices and biases of each direction, those of w_hr of two directions, and those
        of the cell's parameters of two directions. Behind the last ones, if the matrices are int8,
        there are for each of two directions the scales of w_ih, w_hh and w_hr and their sums; 0 if
        there is no w_hr.

    Raises:
        FreedInputError: a weight of a layer with more than four of them has no memory.
    """
    found, count = [weight.data_ptr() for weight in weights], layer.weights_per_direction
    parameters, matrices = len(layer.cell.parameters), 3 if layer.proj_size else 2
    if not (layer.proj_size or parameters or layer.quantized):
        return found, [0, 0], []
    if 0 in found and any(weight.numel() and not weight.data_ptr() for weight in weights):
        raise FreedInputError("a weight of the layer")
    own: list[int] = []
    projections: list[int] = []
    others: list[int] = []
    of_rows: list[int] = []
    for start in range(0, len(found), count):
        stop = start + count
        if layer.quantized:
            stop -= 2 * matrices
            absent = [0] * (3 - matrices)
            scales, sums = found[stop : stop + matrices], found[stop + matrices : start + count]
            of_rows += [*scales, *absent, *sums, *absent]
        end = stop - parameters
        others += found[end:stop]
        if layer.proj_size:
            end -= 1
            projections.append(found[end])
        own += found[start:end]
    behind = (others * 2)[: 2 * parameters] + (of_rows * 2)[:_INT8_ADDRESSES]
    return own, ((projections or [0]) * 2)[:2], behind


def bound(recipe: Recipe, fields: ForwardFields, layer: LayerSpec, itemsize: int) -> ForwardCall:
    """A function that calls a layer's kernel, with no overhead except scratch memory.

    Args:
        recipe: how to call the kernel, for rows that are `row_slices.alike`.
        fields: the indices of its argument block.
        layer: the configuration of the layer.
        itemsize: bytes of an element.

    Returns:
        A function of x `[N, features]` or `[T, B, features]`, the addresses of the initial states
        and of the last, the weights (all contiguous), y, which it writes, the memory for what is
        saved (`new_saved`, `states_alone` or nothing), and the row table of a packed batch or None.
    """
    kernel, threads, late_threads = recipe.kernel, recipe.threads, recipe.late_threads
    template, inside, elements = recipe.block, recipe.inside, recipe.scratch
    write = pointers(layer.bias, layer.num_directions).pack_into
    at, at_rows, at_scratch = 8 * fields.x, fields.rows, fields.scratch
    more = _more(fields, layer)
    size = 0 if inside else elements * itemsize
    take, give = SCRATCH.take, SCRATCH.give
    empty = _empty_weights(layer)

    def run(
        x: Tensor,
        before: Sequence[int],
        after: Sequence[int],
        weights: Sequence[Tensor],
        y: Tensor,
        saved: tuple[Tensor | None, ...],
        table: Tensor | None,
    ) -> None:
        block = template[:]
        if more is None:
            own = [weight.data_ptr() for weight in weights]
        else:
            own = more(block, before, after, weights, saved)
        start = x.data_ptr()
        if not start or 0 in before or own.count(0) > empty:
            check_memory(x, before, weights)
        write(block, at, start, before[0], y.data_ptr(), after[0], *own)
        if table is not None:
            block[fields.N], block[at_rows] = len(x), table.data_ptr()
        if inside:
            block[at_scratch] = block.buffer_info()[0] + inside
            kernel(block, threads, late_threads)
            return
        scratch = take(size) if size >= KEPT_FROM else x.new_empty(elements)
        block[at_scratch] = scratch.data_ptr()
        kernel(block, threads, late_threads)
        if size >= KEPT_FROM:
            give(scratch)

    return run


def writer(fields: ForwardFields, layer: LayerSpec) -> Callable[..., None]:
    """A function that writes the addresses of a call that saves nothing into a block.

    It takes the block, the address of x, those of the initial states, that of y, those of the last
    states, and the weights, which are contiguous.
    """
    write, at = pointers(layer.bias, layer.num_directions).pack_into, 8 * fields.x
    more, empty = _more(fields, layer), _empty_weights(layer)

    def fill(
        block: array[int],
        x: int,
        before: Sequence[int],
        y: int,
        after: Sequence[int],
        weights: Sequence[Tensor],
    ) -> None:
        if more is None:
            own = [weight.data_ptr() for weight in weights]
        else:
            own = more(block, before, after, weights, ())
        if own.count(0) > empty:
            raise FreedInputError("a weight of the stream")
        write(block, at, x, before[0], y, after[0], *own)

    return fill


def _empty_weights(layer: LayerSpec) -> int:
    """How many weights have no elements, and so perhaps no address."""
    return layer.num_directions * sum(not shape.numel() for shape in layer.weight_shapes)


def _more(fields: ForwardFields, layer: LayerSpec) -> Callable[..., list[int]] | None:
    """Writes what a layer has beyond one state and four weights; None for a layer without it.

    The function returns the addresses of the weights that are no projections and no parameters.
    """
    states, parameters = len(layer.cell.states), len(layer.cell.parameters)
    if not (saved_sizes(layer) or states > 1 or parameters or layer.quantized):
        return None
    behind = 2 * parameters + (_INT8_ADDRESSES if layer.quantized else 0)
    write, at = more_pointers(states, behind).pack_into, 8 * fields.more
    beside = bool(layer.proj_size or behind)
    # Of each state but the first, the index of its initial values, which the last ones follow.
    places = [(k, fields.more + 4 + 3 * (k - 1)) for k in range(1, states)]

    def more(
        block: array[int],
        before: Sequence[int],
        after: Sequence[int],
        weights: Sequence[Tensor],
        saved: tuple[Tensor | None, ...],
    ) -> list[int]:
        if not (saved or beside):
            for k, place in places:
                block[place], block[place + 1] = before[k], after[k]
            return [weight.data_ptr() for weight in weights]
        own, projections, of_cell = split_pointers(layer, weights)
        values, outputs, recorded = saved_pointers(layer, saved)
        others = zip(before[1:], after[1:], recorded, strict=True)
        addresses = [address for state in others for address in state]
        write(block, at, *projections, values, outputs, *addresses, *of_cell)
        return own

    return more


def more_pointers(states: int, behind: int) -> Struct:
    """The layout of the addresses of what only some layers have.

    They are w_hr of both directions, the saved values, the outputs before the projection, for each
    state but the first its initial values, its last ones, and those after every step, and then
    those `behind` that `split_pointers` lists last.
    """
    return Struct(f"={4 + 3 * (states - 1) + behind}q")


def forward(
    call: ForwardCall,
    layer: LayerSpec,
    x: Tensor,
    hx: States,
    weights: Sequence[Tensor],
    table: Tensor | None,
    keep: bool,
) -> LayerOutput:
    """Allocate the outputs of a layer, and call its kernel.

    Args:
        call: calls it, see `bound`.
        layer: the configuration of the layer.
        x: `[N, features]`, contiguous.
        hx: each state `[D, B, P or H]`, contiguous.
        weights: the weights of every direction; any strides.
        table: the row table of a packed batch; None if dense.
        keep: whether a backward pass may follow.
    """
    saved = new_saved(layer, x, len(x)) if keep else ()
    return LayerOutput(*_run(call, layer, x, hx, weights, table, saved), saved)


def forward_states(
    call: ForwardCall,
    layer: LayerSpec,
    x: Tensor,
    hx: States,
    weights: Sequence[Tensor],
    table: Tensor | None,
    keep: bool,
) -> LayerOutput:
    """As `forward`, with the states after every step apart from what is saved."""
    if not keep:
        wide = layer.num_directions * layer.hidden_size
        states = tuple([_computed_empty(x, len(x), wide) for _ in hx[1:]])
        memory = states_alone(layer, states)
        found = _run(call, layer, x, hx, weights, table, memory)
        return LayerOutput(*found, (), tuple([state.to(x.dtype) for state in states]))
    saved, first = new_saved(layer, x, len(x)), 1 if layer.cell.saved else 0
    last = first + len(hx) - 1
    y, h_n = _run(call, layer, x, hx, weights, table, saved)
    states = tuple([state.to(x.dtype) for state in saved[first:last]])
    return LayerOutput(y, h_n, saved[:first] + saved[last:], states)


def joined(layer: LayerSpec, output: LayerOutput) -> tuple[Tensor, ...]:
    """What `forward` saves, from the output of `forward_states`."""
    first, dtype = 1 if layer.cell.saved else 0, computed(output.y.dtype)
    states = tuple([state.to(dtype) for state in output.states])
    return output.saved[:first] + states + output.saved[first:]


def _run(
    call: ForwardCall,
    layer: LayerSpec,
    x: Tensor,
    hx: States,
    weights: Sequence[Tensor],
    table: Tensor | None,
    saved: tuple[Tensor | None, ...],
) -> tuple[Tensor, States]:
    """Allocate y and the last states, and call the kernel."""
    y = huge_pages.new_empty(x, len(x), layer.num_directions * layer.output_size)
    dtypes, hx = [state.dtype for state in hx], widened(hx)
    h_n = tuple([torch.empty_like(state) for state in hx])
    held = [w if w.is_contiguous() else w.contiguous() for w in weights]
    before, after = ([state.data_ptr() for state in states] for states in (hx, h_n))
    call(x, before, after, held, y, saved, table)
    return y, tuple([state.to(dtype) for state, dtype in zip(h_n, dtypes, strict=True)])


def scratch_address(recipe: Recipe, block: array[int], scratch: Tensor | None) -> int:
    """The address of the scratch memory: inside the block if no tensor was allocated."""
    return block.buffer_info()[0] + recipe.inside if scratch is None else address_of(scratch)


def shortcut(
    calls: Sequence[ForwardCall],
    layers: Sequence[LayerSpec],
    B: int,
    itemsize: int,
    y_shape: tuple[int, int, int],
) -> Shortcut:
    """`Backend.shortcut`: calls the kernel of each layer, with no overhead except allocations.

    Args:
        calls: call the kernel of each layer, see `bound`.
        layers: the layers of the stack.
        B: batch size.
        itemsize: bytes of an element.
        y_shape: shape of y, as in `Backend.shortcut`.
    """
    if len(layers) == 1:
        alone: Shortcut = one_layer(calls[0], layers[0], B, itemsize, y_shape, keep=False)
        return alone
    first, narrow = layers[0], itemsize < 4
    wide = [itemsize, *[max(itemsize, 4)] * (len(first.state_sizes) - 1)]
    sizes = [
        first.num_directions * B * features * size
        for features, size in zip(first.state_sizes, wide, strict=True)
    ]
    stack = []
    for i, (call, layer) in enumerate(zip(calls, layers, strict=True)):
        count = layer.num_directions * layer.weights_per_direction
        stack.append((call, [i * size for size in sizes], i * count, (i + 1) * count))
    empty_like, allocate = torch.empty_like, huge_pages.allocator(prod(y_shape) * itemsize)

    def run(x: Tensor, hx: States, weights: tuple[Tensor, ...]) -> tuple[Tensor, States]:
        if narrow:
            hx = widened(hx)
        h_n = tuple([empty_like(state) for state in hx])
        starts = [state.data_ptr() for state in hx]
        ends = [state.data_ptr() for state in h_n]
        y = x
        for call, offsets, start, stop in stack:
            x, y = y, allocate(x, *y_shape)
            before = [a + offset for a, offset in zip(starts, offsets, strict=True)]
            after = [a + offset for a, offset in zip(ends, offsets, strict=True)]
            call(x, before, after, weights[start:stop], y, (), None)
        return y, narrowed(h_n) if narrow else h_n

    return run


def one_layer(
    call: ForwardCall,
    layer: LayerSpec,
    B: int,
    itemsize: int,
    y_shape: tuple[int, int, int],
    keep: bool,
) -> Any:
    """`shortcut` for a stack of one layer; with `keep` it also returns what is saved."""
    empty_like = torch.empty_like
    # empty_like is the fastest way to allocate, but needs a y of the state's shape.
    like_state = y_shape == (1, B, layer.output_size)
    rows = y_shape[0] * y_shape[1]
    sizes = saved_sizes(layer) if keep else ()
    single, narrow = len(layer.cell.states) == 1, itemsize < 4
    allocate = huge_pages.allocator(rows * max(y_shape[2], *sizes, 0) * itemsize)

    def run(x: Tensor, hx: States, weights: tuple[Tensor, ...]) -> tuple[Any, ...]:
        h0 = hx[0]
        y = empty_like(h0) if like_state else allocate(x, *y_shape)
        if narrow and not single:
            return _several_narrow(call, layer, x, hx, weights, y, rows if keep else None)
        saved = tuple([allocate(x, rows, size) for size in sizes]) if sizes else ()
        if single:
            h_n = empty_like(h0)
            call(x, (h0.data_ptr(),), (h_n.data_ptr(),), weights, y, saved, None)
            return (y, (h_n,), saved) if sizes else (y, (h_n,))
        states = tuple([empty_like(state) for state in hx])
        before = [state.data_ptr() for state in hx]
        after = [state.data_ptr() for state in states]
        call(x, before, after, weights, y, saved, None)
        return (y, states, saved) if sizes else (y, states)

    return run


def _several_narrow(
    call: ForwardCall,
    layer: LayerSpec,
    x: Tensor,
    hx: States,
    weights: Sequence[Tensor],
    y: Tensor,
    rows: int | None,
) -> tuple[Any, ...]:
    """`one_layer`'s call for several states, all but the first of them wider than their tensors.

    Args:
        call: as in `one_layer`.
        layer: as in `one_layer`.
        x: the input.
        hx: the initial states.
        weights: the weights.
        y: memory for the outputs.
        rows: the number of rows whose values are saved; None if they are not.
    """
    saved = () if rows is None else new_saved(layer, x, rows)
    hx = widened(hx)
    states = tuple([torch.empty_like(state) for state in hx])
    before, after = ([state.data_ptr() for state in given] for given in (hx, states))
    call(x, before, after, weights, y, saved, None)
    found = y, narrowed(states)
    return (*found, saved) if saved else found

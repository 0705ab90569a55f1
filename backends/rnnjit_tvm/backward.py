"""The backward kernel: the gradients of the pre-activations, step by step.

    dz_t = (g_t + grad_y_t) f'(z_t),   g_{t-1} = dz_t W_hh

f' is expressed by y_t = f(z_t). In a sequence's last step g_t is grad_h_n; the g before its first
step is grad_h0 (Werbos, "Backpropagation through time", Proc. IEEE 78(10), 1990). All other
gradients are reductions over the rows of dz (see `reductions`). For shapes see `BackwardArguments`;
distances of rows are in elements, and the caller owns all memory.
"""

from __future__ import annotations

from typing import Any

from tvm.tirx.script.builder import ir as T

from rnnjit_tvm.arguments import BackwardArguments
from rnnjit_tvm.tensorir import Lanes, Module, address, call, integer, least, loop, pointer, when
from rnnjit_tvm.time_loop import (
    Slice,
    Steps,
    add_entries,
    backward_arguments,
    of_direction,
    partition,
    slice_of,
)

#: The backward kernel's phases; its threads synchronise after each.
PHASES = ["backward_pack", "backward_recur", "backward_reduce"]


def add_backward(module: Module, flush: bool) -> None:
    """Add the phases of the backward kernel except the last, and its entries.

    Args:
        module: what they are added to.
        flush: whether the usual entries flush subnormal numbers; those named `..._exact_...` follow
            the caller's setting.
    """
    _add_pack(module)
    _add_remember(module)
    _add_recur(module)
    add_entries(module, "backward", PHASES, flush=flush)
    add_entries(module, "backward", PHASES, "_exact")


def zeros_at(a: BackwardArguments) -> Any:
    """The index of the row of zeros in the scratch memory."""
    return a.D * a.packed


def _add_pack(module: Module) -> None:
    """Pack W_hh of every direction, W_ih if grad_x is needed, and a row of zeros."""
    lanes = module.lanes

    def body(block: Any, thread: Any, threads: Any) -> None:
        a = backward_arguments(block)
        scratch = pointer(a.scratch, lanes.dtype)
        wide, inputs = T.bind(lanes.vectors(a.H)), T.bind(lanes.vectors(a.I))
        panels = T.bind(wide + T.if_then_else(a.grad_x != 0, inputs, integer(0)))
        with partition(a.D * panels, thread, threads) as index:
            unit = T.bind(thread + index * threads)
            d = T.bind(T.truncdiv(unit, panels))
            vector = T.bind(unit - d * panels)
            hidden = vector < wide
            w = T.bind(T.Select(hidden, of_direction(a, d, "w_hh"), of_direction(a, d, "w_ih")))
            columns = T.bind(T.Select(hidden, a.H, a.I))
            column = T.bind(T.Select(hidden, vector, vector - wide) * lanes.count)
            source = address(pointer(w, lanes.dtype), column)
            to = address(scratch, d * a.packed + vector * a.panel)
            call("pack", source, to, columns, a.H, least(columns - column, integer(lanes.count)))
        with partition(T.max(wide, inputs), thread, threads) as index:
            at = T.bind(zeros_at(a) + (thread + index * threads) * lanes.count)
            T.buffer_store(scratch, lanes.zeros(), [lanes.at(at)])

    module.add_phase("backward_pack", body)


def _add_remember(module: Module) -> None:
    """PrimFunc `remember(before, stride, state, distance, rows)`: records addresses of states.

    It writes `rows` addresses to `before`, `stride` elements apart: `state`, `state + distance`,
    ... in bytes.
    """

    def body(before: Any, stride: Any, state: Any, distance: Any, rows: Any) -> None:
        with loop(integer(0), rows) as r:
            T.buffer_store(before, state + r * distance, [r * stride])

    module.add("remember", ["before"], ["stride", "state", "distance", "rows"], body, dtype="int64")


def _add_recur(module: Module) -> None:
    """The time loop of a thread's slices."""

    def body(block: Any, thread: Any, threads: Any) -> None:
        a = backward_arguments(block)
        with partition(a.D * a.slices, thread, threads) as index:
            part = slice_of(a, T.bind(thread + index * threads))
            steps = Steps(a)
            with loop(integer(0), a.T) as s:
                _step(module, a, part, steps, s)

    module.add_phase("backward_recur", body)


def _step(module: Module, a: BackwardArguments, part: Slice, steps: Steps, s: Any) -> None:
    """The s-th step of a slice: its rows of dz, and of grad_h0 where sequences begin."""
    lanes, d, H = module.lanes, part.d, a.H
    dz = pointer(a.dz, lanes.dtype)
    t = T.bind(T.Select(d == 0, a.T - 1 - s, s))
    onward = T.bind(T.Select(d == 0, integer(1), integer(-1)))
    ld = T.bind(a.D * H)
    row, size = steps.start(t), steps.size(t)
    rows = part.count(size)
    linked = part.count(T.min(steps.size(t + onward), size))
    begun = part.count(T.min(steps.size(t - onward), size))
    here = T.bind((row + part.low) * ld + d * H)
    with when(linked > 0):
        later = T.bind(steps.start(T.max(t + onward, integer(0))) + part.low)
        source = address(dz, later * ld + d * H)
        _through(lanes, a, part, source, address(dz, here), ld, linked)
    with when(rows > linked):
        _last_states(lanes, a, part, row, linked, rows - linked)
    with when(rows > 0):
        _pointwise(lanes, a, part, here, rows)
    with when(T.And(rows > begun, a.grad_h0 != integer(0))):
        first = part.row(begun)
        source = address(dz, (row + first) * ld + d * H)
        to = address(pointer(a.grad_h0, lanes.dtype), (d * a.B + first) * H)
        _through(lanes, a, part, source, to, H, rows - begun)
    with when(a.before != integer(0)):
        earlier = T.bind(steps.start(T.max(t - onward, integer(0))) + part.low)
        _states_before(lanes, a, part, row, earlier, begun, rows)


def _states_before(
    lanes: Lanes, a: BackwardArguments, part: Slice, row: Any, earlier: Any, begun: Any, rows: Any
) -> None:
    """Record the states before a step: y for its first `begun` rows, h0 for the others."""
    before, size, d = pointer(a.before, "int64"), lanes.bits // 8, part.d
    ld, at = T.bind(a.D * a.H), T.bind(d * a.N + row)
    state = a.y + (earlier * ld + d * a.H) * size
    to = address(before, at + part.low)
    call("remember", to, part.stride, state, ld * part.stride * size, begun)
    first = part.row(begun)
    state = a.h0 + (d * a.B + first) * a.H * size
    to = address(before, at + first)
    call("remember", to, part.stride, state, a.H * part.stride * size, rows - begun)


def _through(
    lanes: Lanes, a: BackwardArguments, part: Slice, source: Any, to: Any, ld_to: Any, rows: Any
) -> None:
    """`to = dz W_hh` for `rows` of a slice's rows."""
    scratch, zero = pointer(a.scratch, lanes.dtype), integer(0)
    w = address(scratch, part.d * a.packed)
    ld = T.bind(a.D * a.H * part.stride)
    pointers = (address(scratch, zeros_at(a)), source, source, w, to)
    sizes = (zero, zero, zero, zero, ld, a.H, a.panel, ld_to * part.stride)
    call("block", *pointers, *sizes, rows, a.H)


def _last_states(
    lanes: Lanes, a: BackwardArguments, part: Slice, row: Any, first: Any, rows: Any
) -> None:
    """Write the gradient of h_n to dz, for rows that this step is the last of."""
    size, d, H = lanes.bits // 8, part.d, a.H
    b = part.row(first)
    given = T.bind(a.grad_h_n + (d * a.B + b) * H * size)
    source, ld_source = _or_zeros(lanes, a, a.grad_h_n, given, H * part.stride)
    ld = T.bind(a.D * H)
    to = address(pointer(a.dz, lanes.dtype), (row + b) * ld + d * H)
    call("copy", source, to, ld_source, ld * part.stride, rows, H)


def _pointwise(lanes: Lanes, a: BackwardArguments, part: Slice, here: Any, rows: Any) -> None:
    """Compute dz = (dz + grad_y) f'(z) in place."""
    ld = T.bind(a.D * a.H * part.stride)
    given = T.bind(a.grad_y + here * (lanes.bits // 8))
    grad, ld_grad = _or_zeros(lanes, a, a.grad_y, given, ld)
    pointers = [address(pointer(each, lanes.dtype), here) for each in (a.dz, a.y)]
    call("activate_gradient", *pointers, grad, ld, ld_grad, rows, a.H)


def _or_zeros(
    lanes: Lanes, a: BackwardArguments, tensor: Any, given: Any, ld: Any
) -> tuple[Any, Any]:
    """The given pointer and distance of rows, or those of zeros if the tensor is absent."""
    present = tensor != integer(0)
    zeros = a.scratch + zeros_at(a) * (lanes.bits // 8)
    source = T.bind(T.Select(present, given, zeros))
    return address(pointer(source, lanes.dtype), integer(0)), T.bind(
        T.Select(present, ld, integer(0))
    )

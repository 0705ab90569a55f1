"""The backward kernel: all gradients of one layer, all directions, in one call.

Each direction runs through its steps in reverse order (Werbos, "Backpropagation through time",
Proc. IEEE 78(10), 1990). Where g_t is the gradient that reaches h_t from h_n and the next step, and
those of other states likewise:

    dz_t, s_t = derivative of the cell's step, of g_t + grad_y_t and the gradients of other states
    g_{t-1} = s_t + W_hh^T dz_t

dz_t is the gradient of the accumulators, and s_t what reaches h_{t-1} without W_hh (see
`cell_step`). With a projection, the step gets W_hr^T (g_t + grad_y_t). Only this recurrence runs
step by step; the other gradients are one reduction each over all rows (see `reductions`).

dz of a row has the blocks of `cell_layout`, each of H columns, and then, where there is a
projection, the P columns of g_t + grad_y_t. It is stored for one window of steps at a time. The
window's reductions are done while dz is in the caches; then the window moves to earlier steps. Rows
that are still needed move with it: those of the last step computed, and those of an incomplete
block of the reductions.

For shapes see `BackwardArguments`; addresses are in bytes, distances of rows in elements, and the
caller owns all memory.
"""

from __future__ import annotations

from typing import Any

from tvm.tirx.script.builder import ir as T

from rnnjit.codegen.cell_layout import CellLayout
from rnnjit.codegen.kernel import LINE
from rnnjit.codegen.plan import REDUCTION_ROWS
from rnnjit_tvm.arguments import BackwardArguments
from rnnjit_tvm.backward_step import add_step
from rnnjit_tvm.forward import tail_start
from rnnjit_tvm.propagation import add_propagation
from rnnjit_tvm.tensorir import (
    Module,
    address,
    call,
    either,
    integer,
    least,
    loop,
    most,
    pointer,
    when,
)
from rnnjit_tvm.time_loop import (
    Slice,
    Steps,
    Variable,
    add_entries,
    backward_arguments,
    of_direction,
    part_of,
    partition,
    slice_of,
)
from rnnjit_tvm.work_stealing import tasks

_DZ = BackwardArguments._fields.index("dz")


def add_backward(module: Module, layout: CellLayout, flush: bool) -> None:
    """Add the backward kernel but for its reductions, and its entries.

    Args:
        module: what they are added to.
        layout: of the cell.
        flush: whether the usual entries flush subnormal numbers; those named `..._exact_...` follow
            the caller's setting.
    """
    _add_pack(module, layout)
    _add_move(module)
    add_step(module, layout)
    add_propagation(module, layout)
    _add_recur(module, layout)
    _add_recur_task(module)
    _add_backward(module)
    add_entries(module, "backward", flush=flush)
    add_entries(module, "backward", "_exact")


def _add_backward(module: Module) -> None:
    """PrimFunc `backward(block, thread, threads)`, which each thread calls."""
    lanes = module.lanes

    def body(block: Any, thread: Any, threads: Any) -> None:
        a, own, zero = backward_arguments(block), address(block, integer(0)), integer(0)
        steps, ld = Steps(a), a.dz_columns
        total = T.truncdiv(a.N + (REDUCTION_ROWS - 1), integer(REDUCTION_ROWS))
        stop, unsummed, kept, phase = Variable(a.T), Variable(total), Variable(zero), Variable(zero)
        with T.While(stop.get() > 0):
            end, left = stop.now(), unsummed.now()
            row_stop = steps.start(end)
            start = _window_start(a, steps, end, row_stop)
            row, last = steps.start(start), steps.size(start)
            with tasks(a.sync, thread, threads, phase.now(), zero) as task:
                with T.If(end < a.T):
                    with T.Then():
                        call("backward_move", own, task, threads, row_stop - row, kept.now())
                    with T.Else():
                        call("backward_pack", own, task, threads)
                with when(task == 0):
                    T.buffer_store(block, lanes.after(a.dz_buffer, -(row * ld)), [integer(_DZ)])
            with tasks(a.sync, thread, threads, phase.now() + 1, zero) as task:
                call("backward_recur_task", own, task, threads, start, end)
            first = T.bind(T.truncdiv(row + (REDUCTION_ROWS - 1), integer(REDUCTION_ROWS)))
            final = T.bind(T.cast(start == 0, "int64"))
            with tasks(a.sync, thread, threads, phase.now() + 2, final) as task:
                call("backward_reduce", own, task, threads, row, row_stop, first, left)
                with when(T.And(final != 0, a.grad_h0 != 0)):
                    call("backward_initial", own, task, threads)
            kept.set(T.min(T.max(last, first * REDUCTION_ROWS - row), a.N - row))
            stop.set(start)
            unsummed.set(first)
            phase.set(phase.get() + 3)

    module.add_phase("backward", body)


def _window_start(a: BackwardArguments, steps: Steps, stop: Any, row_stop: Any) -> Any:
    """The first step of the window that ends before step `stop`: it has one step at least."""
    start, more = Variable(stop - 1), Variable(integer(1))
    with T.While(T.And(start.get() > 0, more.get() != 0)):
        before = T.bind(start.get() - 1)
        fits = T.bind(row_stop - steps.start(before) <= a.window)
        more.set(T.cast(fits, "int64"))
        start.set(either(fits, before, before + 1))
    return start.now()


def _add_pack(module: Module, layout: CellLayout) -> None:
    """PrimFunc `backward_pack(block, task, tasks)`: a task's part of packing.

    The columns of W_hh, those of W_ih where grad_x is needed, and those of W_hr, as panels
    `[K][lanes]`; and a row of zeros. K is G*H for the first two, and P for W_hr.
    """
    lanes, G = module.lanes, layout.gates

    def body(block: Any, task: Any, count: Any) -> None:
        a = backward_arguments(block)
        wide_p, wide_i, wide_h = (T.bind(lanes.vectors(n)) for n in (a.P, a.I, a.H))
        wide_k = wide_p if layout.cell.has_product else integer(0)
        inputs = T.bind(wide_k + either(a.grad_x != 0, wide_i, integer(0)))
        columns = T.bind(inputs + either(a.P != a.H, wide_h, integer(0)))
        low, high = part_of(columns, task, count)
        with loop(integer(0), a.D) as d, loop(low, high) as column:
            base = lanes.after(a.scratch, d * a.packed)

            def pack(name: str, features: Any, k: Any, v: Any, to: Any) -> None:
                source = lanes.after(of_direction(a, d, name), v * lanes.count)
                some = least(features - v * lanes.count, integer(lanes.count))
                call("pack", lanes.element(source), lanes.element(to), features, k, some)

            if layout.cell.has_product:
                with when(column < wide_k):
                    pack("w_hh", a.P, a.H * G, column, lanes.after(base, column * a.panel))
            with when(T.And(column >= wide_k, column < inputs)):
                to = lanes.after(base, column * a.panel)
                pack("w_ih", a.I, a.H * G, column - wide_k, to)
            with when(column >= inputs):
                v = T.bind(column - inputs)
                to = lanes.after(base, (wide_k + wide_i) * a.panel + v * a.panel_out)
                pack("w_hr", a.H, a.P, v, to)
        with when(task == 0):
            zeros = lanes.memory(lanes.after(a.scratch, a.D * a.packed))
            with loop(integer(0), most(most(wide_p, wide_h), wide_i)) as v:
                T.buffer_store(zeros, lanes.zeros(), [lanes.at(v * lanes.count)])

    module.add("backward_pack", ["block"], ["task", "tasks"], body, dtype="int64")


def _add_move(module: Module) -> None:
    """PrimFunc `backward_move(block, task, tasks, rows, kept)`: moves the window.

    A task's columns of the first `kept` rows move up by `rows` rows.
    """
    lanes = module.lanes

    def body(block: Any, task: Any, count: Any, rows: Any, kept: Any) -> None:
        a = backward_arguments(block)
        first, last = part_of(T.bind(lanes.vectors(a.dz_columns)), task, count)
        # From the last row to the first, since source and destination may overlap.
        source = lanes.after(a.dz_buffer, (kept - 1) * a.dz_columns)
        to, ld = lanes.after(source, rows * a.dz_columns), T.bind(-a.dz_columns)
        call("copy_rows", to, ld, source, ld, kept, first, last, a.dz_columns)

    names = ["task", "tasks", "rows", "kept"]
    module.add("backward_move", ["block"], names, body, dtype="int64")


def _add_recur_task(module: Module) -> None:
    """PrimFunc `backward_recur_task(block, task, tasks, start, stop)`: steps `stop` to `start`."""

    def body(block: Any, *sizes: Any) -> None:
        task, count, start, stop = sizes
        a, own, zero, one = (
            backward_arguments(block),
            address(block, integer(0)),
            integer(0),
            integer(1),
        )
        steps = Steps(a)
        by_columns = T.bind(T.And(a.parts > 1, count >= a.D * a.parts))
        tail = Variable(start)
        with when(T.Not(by_columns)):
            tail.set(_tail(a, steps, start, stop, count))
        first = tail.now()
        parts = either(by_columns, a.parts, count)
        d = T.bind(T.truncdiv(task, parts))
        with when(T.And(first < stop, d < a.D)):
            area = T.bind(a.sync + LINE * (1 + count) * (1 + d))
            call(
                *("backward_recur", own, d, zero, a.B, one, first, stop),
                *(area, task - d * parts, parts, d),
            )
        with when(first > start), partition(a.D * a.slices, task, count) as index:
            d, part = slice_of(a, T.bind(task + index * count))
            call("backward_recur", own, d, *part, start, first, zero, zero, one, task)

    names = ["task", "tasks", "start", "stop"]
    module.add("backward_recur_task", ["block"], names, body, dtype="int64")


def _tail(a: BackwardArguments, steps: Steps, start: Any, stop: Any, threads: Any) -> Any:
    """The first of the steps up to `stop` that threads divide by columns; `stop` if none."""
    return T.bind(T.max(T.min(tail_start(a, steps, start, threads), stop), start))


def _add_recur(module: Module, layout: CellLayout) -> None:
    """PrimFunc `backward_recur`: dz of rows `low`, `low + stride`, ... below `high`.

    `backward_recur(block, d, low, high, stride, start, stop, area, own, parts, place)` goes from
    step `stop` down to `start` in direction 0. Direction 1 runs through all steps, and so `start`
    is 0 and `stop` is T.

    If `parts` > 1, that many threads divide the hidden columns, and each step is a phase of `area`
    (see `work_stealing`); `own` is this thread's part. `place` numbers the memory for gradients
    before the projection, which is theirs.
    """
    lanes = module.lanes

    def body(block: Any, *sizes: Any) -> None:
        d, low, high, stride, start, stop, area, own, parts, place = sizes
        a = backward_arguments(block)
        steps, vectors, part = Steps(a), T.bind(lanes.vectors(a.H)), Slice(low, high, stride)

        def one(s: Any, task: Any) -> None:
            where = (d, steps, part, s)
            _step(module, layout, block, a, where, (task, part_of(vectors, task, parts), place))

        with loop(a.T - stop, a.T - start) as s, T.If(parts > 1):
            with T.Then(), tasks(area, own, parts, s, integer(0)) as task:
                one(s, task)
            with T.Else():
                one(s, integer(0))

    names = ["d", "low", "high", "stride", "start", "stop", "area", "own", "parts", "place"]
    module.add("backward_recur", ["block"], names, body, dtype="int64")


def _step(
    module: Module,
    layout: CellLayout,
    block: Any,
    a: BackwardArguments,
    where: tuple[Any, Steps, Slice, Any],
    how: tuple[Any, tuple[Any, Any], Any],
) -> None:
    """The s-th step of a slice."""
    lanes, own, zero, one = module.lanes, address(block, integer(0)), integer(0), integer(1)
    (d, steps, part, s), (task, span, place) = where, how
    t = either(d == 0, a.T - 1 - s, s)
    onward = either(d == 0, one, integer(-1))
    row, size = steps.start(t), steps.size(t)
    rows = part.count(size)
    # Rows that continue in the step computed just before get its gradient through W_hh. For the
    # others this is the last state, and they get the gradient of h_n.
    linked = part.count(T.min(steps.size(t + onward), size))
    # The states before the step: y for the rows that have begun, h0 for the others.
    begun = part.count(T.min(steps.size(t - onward), size))
    earlier = T.bind(steps.start(T.max(t - onward, zero)) + part.low)
    with when(linked > 0):
        later = T.bind(steps.start(T.max(t + onward, zero)) + part.low)
        source = lanes.after(a.dz, (d * a.N + later) * a.dz_columns)
        call("backward_propagate", own, d, *span, part.stride, source, part.low, linked)
    with when(rows > linked):
        b = part.row(linked)
        call("backward_begin", own, d, *span, part.stride, b, rows - linked)
    before = begun if layout.reads_states else rows
    with when(before > 0):
        call(
            *("backward_step", own, d, *span, part.stride, row + part.low, part.low, before),
            *(earlier, zero, place),
        )
    with when(rows > before):
        b = part.row(before)
        call(
            *("backward_step", own, d, *span, part.stride, row + b, b, rows - before),
            *(zero, one, place),
        )
    with when(T.And(a.before != 0, task == 0)):
        _record_previous(module, a, d, part, (row, earlier, begun, rows))


def _record_previous(
    module: Module, a: BackwardArguments, d: Any, part: Slice, rows: tuple[Any, Any, Any, Any]
) -> None:
    """Write the addresses of the states before a step's rows: y for the `begun` first, then h0."""
    row, earlier, begun, count = rows
    size, before = module.lanes.itemsize, pointer(a.before, "int64")
    at = T.bind(d * a.N + row)
    with loop(integer(0), begun) as r:
        state = a.y + ((earlier + r * part.stride) * a.D + d) * a.P * size
        T.buffer_store(before, state, [at + part.row(r)])
    with loop(begun, count) as r:
        b = part.row(r)
        T.buffer_store(before, a.h0 + (d * a.B + b) * a.P * size, [at + b])

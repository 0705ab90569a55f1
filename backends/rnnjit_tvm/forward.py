"""The forward kernel: a whole sequence of one layer, all directions, in one call.

    zx_t = W_ih x_t + b_ih      zh_t = W_hh h_{t-1} + b_hh
    out_t, s_t = program(zx_t, zh_t, s_{t-1})

and h_t is out_t, or W_hr out_t if there is a projection (see `rnnjit.backend`). The batch is cut
into slices, so that threads run the whole time loop without waiting for each other. If there are
too few rows for that, each thread computes a part of the hidden columns of a slice (`parts`), and
the threads synchronise after each step. They also do so at the end of a packed batch, where few
sequences continue (`tail`). No thread waits for one that has not begun (see `work_stealing`).
Results are the same, bit for bit, whatever the plan.

Weights are packed once per call (see `preparation`). Where a step has few rows, the input
projection of a window of steps is computed at once (`hoist`). The states but the first run through
the steps in the memory of their last values. For shapes see `ForwardArguments`; addresses are in
bytes, distances of rows in elements, and the caller owns all memory.
"""

from __future__ import annotations

from typing import Any

from tvm.tirx.script.builder import ir as T

from rnnjit.codegen.cell_layout import CellLayout
from rnnjit.codegen.kernel import LINE
from rnnjit_tvm.arguments import ForwardArguments
from rnnjit_tvm.forward_step import add_step
from rnnjit_tvm.preparation import add_preparation
from rnnjit_tvm.tensorir import Module, address, call, either, integer, loop, when
from rnnjit_tvm.time_loop import (
    Slice,
    Steps,
    Variable,
    add_entries,
    forward_arguments,
    part_of,
    partition,
    slice_of,
)
from rnnjit_tvm.work_stealing import tasks


def add_forward(module: Module, layout: CellLayout, widest: int) -> None:
    """Add the forward kernel, and its entries.

    Args:
        module: what to add them to.
        layout: of the cell.
        widest: most vectors of the tile with the most rows.
    """
    add_preparation(module, layout)
    add_step(module, layout, widest)
    _add_recur(module, layout)
    _add_pack_task(module)
    _add_project_task(module, layout)
    _add_slices(module)
    _add_by_columns(module)
    _add_window_end(module)
    _add_forward(module)
    add_entries(module, "forward")


def _add_forward(module: Module) -> None:
    """PrimFunc `forward(block, thread, threads)`, which each thread calls."""

    def body(block: Any, thread: Any, threads: Any) -> None:
        a, own = forward_arguments(block), address(block, integer(0))
        with T.If(a.parts > 1):
            with T.Then():
                call("forward_by_columns", own, thread, threads)
            with T.Else():
                _by_slices(a, own, thread, threads)

    module.add_phase("forward", body)


def _by_slices(a: ForwardArguments, own: Any, thread: Any, threads: Any) -> None:
    """The phases of a call whose batch is divided; the tail of a packed one by its columns."""
    steps, zero = Steps(a), integer(0)
    with tasks(a.sync, thread, threads, zero, zero) as task:
        call("forward_pack", own, task, threads)
    tail = tail_start(a, steps, zero, threads)
    start, phase = Variable(zero), Variable(integer(1))
    with T.While(start.get() < tail):
        begin, stop = start.now(), Variable(zero)
        call("window_end", own, stop.address, begin, tail)
        end = stop.now()
        with when(a.hoist != 0):
            with tasks(a.sync, thread, threads, phase.now(), zero) as task:
                call("forward_project", own, task, threads, begin, end)
            phase.set(phase.get() + 1)
        last = T.bind(T.cast(end == a.T, "int64"))
        with tasks(a.sync, thread, threads, phase.now(), last) as task:
            call("forward_slices", own, task, threads, begin, end)
        phase.set(phase.get() + 1)
        start.set(end)
    with when(tail < a.T):
        area = T.bind(a.sync + LINE * (1 + threads))
        call(
            *("forward_recur", own, zero, zero, a.B, integer(1), tail, a.T, zero, zero),
            *(area, thread, threads, tail, tail, zero),
        )


def tail_start(a: Any, steps: Steps, start: Any, threads: Any) -> Any:
    """The first of the last steps, from `start` on, that threads divide by columns; T if none."""
    found = Variable(a.T)
    with when(T.And(a.tail > 0, threads > 1)):
        more = Variable(integer(1))
        with T.While(T.And(found.get() > start, more.get() != 0)):
            before = T.bind(found.get() - 1)
            small = T.bind(steps.size(before) < a.tail)
            more.set(T.cast(small, "int64"))
            found.set(either(small, before, before + 1))
    return found.now()


def _add_window_end(module: Module) -> None:
    """PrimFunc `window_end(block, to, start, limit)`: the step at which the window ends.

    It begins at step `start`, has at most `window` rows, or one step, and ends before step `limit`.
    The result is written to `to`.
    """

    def body(block: Any, to: Any, start: Any, limit: Any) -> None:
        a = forward_arguments(block)
        steps, stop = Steps(a), Variable(T.min(start + 1, limit))
        first, more = steps.start(start), Variable(integer(1))
        with T.While(T.And(stop.get() < limit, more.get() != 0)):
            now = stop.now()
            fits = T.bind(steps.start(now + 1) - first <= a.window)
            more.set(T.cast(fits, "int64"))
            stop.set(either(fits, now + 1, now))
        T.buffer_store(to, stop.get(), [integer(0)])

    module.add("window_end", ["block", "to"], ["start", "limit"], body, dtype="int64")


def _add_pack_task(module: Module) -> None:
    """PrimFunc `forward_pack(block, task, tasks)`: a task's part of packing."""
    lanes = module.lanes

    def body(block: Any, task: Any, count: Any) -> None:
        a, own = forward_arguments(block), address(block, integer(0))
        for name, features in (("pack_columns", a.H), ("pack_out", a.P)):
            wide = T.bind(lanes.vectors(features))
            units = T.bind(a.D * wide)
            if name == "pack_out":
                units = either(a.P != a.H, units, integer(0))
            with partition(units, task, count) as index:
                unit = T.bind(task + index * count)
                d = T.bind(T.truncdiv(unit, wide))
                v = T.bind(unit - d * wide)
                call(name, own, d, v, v + 1)

    module.add("forward_pack", ["block"], ["task", "tasks"], body, dtype="int64")


def _add_project_task(module: Module, layout: CellLayout) -> None:
    """PrimFunc `forward_project(block, task, tasks, start, stop)`: the input projection.

    A task's rows of those of steps `start` to `stop`.
    """
    lanes = module.lanes

    def body(block: Any, task: Any, count: Any, start: Any, stop: Any) -> None:
        a, own = forward_arguments(block), address(block, integer(0))
        steps, vectors = Steps(a), T.bind(lanes.vectors(a.H))
        origin = steps.start(start)
        low, high = part_of(T.bind(steps.start(stop) - origin), task, count)
        with loop(integer(0), a.D) as d:
            zx = _projections_at(module, layout, a, d, origin)
            call("project", own, d, integer(0), vectors, origin + low, origin + high, zx)

    names = ["task", "tasks", "start", "stop"]
    module.add("forward_project", ["block"], names, body, dtype="int64")


def _projections_at(
    module: Module, layout: CellLayout, a: ForwardArguments, d: Any, origin: Any
) -> Any:
    """The address where the input projection of row 0 would be, of a window from row `origin`."""
    lanes = module.lanes
    row = lanes.vectors(a.H) * (layout.gates * lanes.count)
    return lanes.after(a.scratch, a.hoisted + d * a.hoisted_size - origin * row)


def _add_by_columns(module: Module) -> None:
    """PrimFunc `forward_by_columns(block, thread, threads)`: a call divided by hidden columns."""

    def body(block: Any, thread: Any, threads: Any) -> None:
        a, own, zero, one = (
            forward_arguments(block),
            address(block, integer(0)),
            integer(0),
            integer(1),
        )
        parts = either(threads >= a.parts, a.parts, one)
        groups, size = T.bind(T.truncdiv(threads, parts)), T.bind(LINE * (1 + threads))

        def run(task: Any) -> None:
            group = T.bind(T.truncdiv(task, parts))
            with when(group < groups), partition(a.D, group, groups) as index:
                d, start = T.bind(group + index * groups), Variable(zero)
                area = T.bind(a.sync + size * (1 + d))
                with T.While(start.get() < a.T):
                    begin, stop = start.now(), Variable(zero)
                    call("window_end", own, stop.address, begin, a.T)
                    end = stop.now()
                    call(
                        *("forward_recur", own, d, zero, a.B, one, begin, end, one, one),
                        *(area, T.truncmod(task, parts), parts, zero, begin, d),
                    )
                    start.set(end)

        with T.If(groups > 1):
            with T.Then(), tasks(a.sync, thread, threads, zero, one) as task:
                run(task)
            with T.Else():
                run(thread)

    module.add("forward_by_columns", ["block"], ["thread", "threads"], body, dtype="int64")


def _add_slices(module: Module) -> None:
    """PrimFunc `forward_slices(block, task, tasks, start, stop)`: steps of a task's slices."""

    def body(block: Any, task: Any, count: Any, start: Any, stop: Any) -> None:
        a, own, zero = forward_arguments(block), address(block, integer(0)), integer(0)
        with partition(a.D * a.slices, task, count) as index:
            d, part = slice_of(a, T.bind(task + index * count))
            call(
                *("forward_recur", own, d, *part, start, stop, a.hoist, zero),
                *(zero, zero, integer(1), zero, start, task),
            )

    names = ["task", "tasks", "start", "stop"]
    module.add("forward_slices", ["block"], names, body, dtype="int64")


def _add_recur(module: Module, layout: CellLayout) -> None:
    """PrimFunc `forward_recur`: the time loop over rows `low`, `low + stride`, ... below `high`.

    `forward_recur(block, d, low, high, stride, start, stop, hoisted, unready, area, own, parts,
    origin, window, place)` goes from the step number `start`, in the order of direction `d`, to
    `stop`. Direction 1 runs through all steps. `hoisted` is 1 if the input projection of the rows
    from step `window` on is computed before the steps. If `unready` is 1, that has still to be
    done, and at the first of all steps the packing as well.

    If `parts` > 1, that many threads divide the hidden columns, and each step is a phase of `area`
    (see `work_stealing`), the first of which is step `origin`; `own` is this thread's part. `place`
    numbers the memory for pre-activations, which is theirs.
    """
    lanes = module.lanes

    def body(block: Any, *sizes: Any) -> None:
        d, low, high, stride, start, stop, hoisted, unready, area, own, parts, *rest = sizes
        origin, window, place = rest
        a, steps = forward_arguments(block), Steps(forward_arguments(block))
        vectors, whole = T.bind(lanes.vectors(a.H)), Slice(low, high, stride)
        first_row = steps.start(window)
        zx = _projections_at(module, layout, a, d, first_row)
        ready = (zx, first_row, steps.start(stop))

        def one(s: Any, task: Any) -> None:
            span = part_of(vectors, task, parts)
            with when(T.And(unready != 0, s == start)):
                packing = T.cast(s == 0, "int64")
                own_block = address(block, integer(0))
                call("prepare", own_block, d, *span, packing, ready[1], ready[2], zx)
            _step(module, block, a, (d, steps, whole, s), (span, hoisted, zx, place))

        with loop(start, stop) as s, T.If(parts > 1):
            with T.Then(), tasks(area, own, parts, s - origin, integer(0)) as task:
                one(s, task)
            with T.Else():
                one(s, integer(0))

    names = ["d", "low", "high", "stride", "start", "stop", "hoisted", "unready", "area", "own"]
    names += ["parts", "origin", "window", "place"]
    module.add("forward_recur", ["block"], names, body, dtype="int64")


def _step(
    module: Module,
    block: Any,
    a: ForwardArguments,
    where: tuple[Any, Steps, Slice, Any],
    how: tuple[Any, Any, Any, Any],
) -> None:
    """The s-th step of a slice: its rows of y, and of h_n where sequences end."""
    lanes, own, zero, one = module.lanes, address(block, integer(0)), integer(0), integer(1)
    (d, steps, part, s), (span, hoisted, zx, place) = where, how
    t = either(d == 0, s, a.T - 1 - s)
    onward = either(d == 0, one, integer(-1))
    ld = T.bind(a.D * a.P)
    row, size = steps.start(t), steps.size(t)
    rows = part.count(size)
    linked = part.count(T.min(steps.size(t - onward), size))
    held = part.count(T.min(steps.size(t + onward), size))
    with when(linked > 0):
        before = T.bind(steps.start(T.max(t - onward, zero)) + part.low)
        h = lanes.after(a.y, before * ld + d * a.P)
        call(
            *("forward_step", own, d, *span, hoisted, part.stride, row + part.low, linked),
            *(h, ld * part.stride, part.low, zero, zx, place),
        )
    with when(rows > linked):
        first = part.row(linked)
        h = lanes.after(a.h0, (d * a.B + first) * a.P)
        call(
            *("forward_step", own, d, *span, hoisted, part.stride, row + first, rows - linked),
            *(h, a.P * part.stride, first, one, zx, place),
        )
    with when(rows > held):
        first = part.row(held)
        source = lanes.after(a.y, (row + first) * ld + d * a.P)
        to = lanes.after(a.h_n, (d * a.B + first) * a.P)
        # A projected layer is not divided by columns.
        low = either(a.P != a.H, zero, span[0])
        high = either(a.P != a.H, lanes.vectors(a.P), span[1])
        call(
            *("copy_rows", to, a.P * part.stride, source, ld * part.stride),
            *(rows - held, low, high, a.P),
        )

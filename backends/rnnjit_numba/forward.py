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
the steps in the memory of their last values.

The first arguments of each function are the address of a `ForwardArguments`, which has the shapes,
the direction `d`, and a range of vectors of the hidden units, from `first` up to but not including
`last`. Addresses and distances are in bytes; the caller owns all memory.
"""

from __future__ import annotations

from typing import Any

from rnnjit.codegen.kernel import LINE
from rnnjit_numba import memory
from rnnjit_numba.arguments import ForwardArguments
from rnnjit_numba.context import CodegenContext, CommonFunctions
from rnnjit_numba.forward_step import add_step
from rnnjit_numba.preparation import add_preparation
from rnnjit_numba.quantized_products import add_int8_parts


def add_forward(context: CodegenContext, common: CommonFunctions) -> None:
    """Add the kernel `forward(arguments, thread, threads)`, which each thread calls."""
    unpack, next_task = memory.unpack_arguments(ForwardArguments), common.next_task
    read_int = memory.read_int()
    if context.int8 is None:
        preparation = add_preparation(context, common)
        step = add_step(context, common, preparation)
    else:
        preparation, step = add_int8_parts(context)
    recur = _add_recur(context, common, preparation.prepare, step)
    window_end = _add_window_end(context)
    by_columns = _add_by_columns(context, common, recur, window_end)
    slices, pack = _add_slices(context, recur), _add_pack_task(context, preparation)
    project = _add_project_task(context, preparation)

    def forward(arguments: int, thread: int, threads: int) -> None:
        a = unpack(arguments)
        if a.parts > 1 or a.direct != 0:
            by_columns(arguments, thread, threads)
            return
        task = next_task(a.sync, thread, threads, 0, -1, 0)
        while task >= 0:
            pack(arguments, task, threads)
            task = next_task(a.sync, thread, threads, 0, task, 0)
        tail_start, tail_row = a.T, a.N
        if a.tail > 0 and threads > 1:
            while tail_start > 0 and read_int(a.sizes + 8 * (tail_start - 1)) < a.tail:
                tail_start -= 1
                tail_row -= read_int(a.sizes + 8 * tail_start)
        start, row, phase = 0, 0, 1
        while start < tail_start:
            stop = window_end(arguments, start, tail_start, row, 0)
            row_stop = window_end(arguments, start, tail_start, row, 1)
            if a.hoist != 0:
                task = next_task(a.sync, thread, threads, phase, -1, 0)
                while task >= 0:
                    project(arguments, task, threads, row, row_stop)
                    task = next_task(a.sync, thread, threads, phase, task, 0)
                phase += 1
            last = 1 if stop == a.T else 0
            task = next_task(a.sync, thread, threads, phase, -1, last)
            while task >= 0:
                slices(arguments, task, threads, start, stop, row)
                task = next_task(a.sync, thread, threads, phase, task, last)
            phase += 1
            start, row = stop, row_stop
        if tail_start < a.T:
            area = a.sync + LINE * (1 + threads)
            recur(
                *(arguments, 0, 0, a.B, 1, tail_start, a.T, tail_row, 0, 0, area, thread, threads),
                *(tail_start, tail_row, a.N, thread),
            )

    context.symbols.add(forward)


def _add_window_end(context: CodegenContext) -> Any:
    """The step, or with `row_wanted` 1 the row, at which the window ends that begins at `start`.

    It has at most `window` rows, or one step, and ends before step `limit`.
    """
    unpack, read_int = memory.unpack_arguments(ForwardArguments), memory.read_int()

    def window_end(arguments: int, start: int, limit: int, row: int, row_wanted: int) -> int:
        a = unpack(arguments)
        stop, row_stop = start, row
        while stop < limit:
            rows = a.B if a.sizes == 0 else read_int(a.sizes + 8 * stop)
            if stop > start and row_stop - row + rows > a.window:
                break
            stop, row_stop = stop + 1, row_stop + rows
        return row_stop if row_wanted != 0 else stop

    return context.symbols.add(window_end)


def _add_pack_task(context: CodegenContext, preparation: Any) -> Any:
    """A task's part of packing the weights and biases."""
    unpack, lanes = memory.unpack_arguments(ForwardArguments), context.lanes.count
    pack, pack_bias, pack_out = preparation.pack, preparation.pack_bias, preparation.pack_out

    def pack_task(arguments: int, task: int, tasks: int) -> None:
        a = unpack(arguments)
        vectors, projected = (a.H + lanes - 1) // lanes, (a.P + lanes - 1) // lanes
        for unit in range(task, a.D * vectors, tasks):
            d, v = unit // vectors, unit % vectors
            pack_bias(arguments, d, v, v + 1)
            pack(arguments, d, v, v + 1)
        for unit in range(task, a.D * projected if a.P != a.H else 0, tasks):
            pack_out(arguments, unit // projected, unit % projected, unit % projected + 1)

    return context.symbols.add(pack_task)


def _add_project_task(context: CodegenContext, preparation: Any) -> Any:
    """A task's rows of the input projection of rows `row` to `row_stop`."""
    unpack, project = memory.unpack_arguments(ForwardArguments), preparation.project
    lanes, row_bytes = context.lanes.count, context.layout.gates * context.lanes.vector_bytes

    def project_task(arguments: int, task: int, tasks: int, row: int, row_stop: int) -> None:
        a = unpack(arguments)
        vectors, rows = (a.H + lanes - 1) // lanes, row_stop - row
        start, stop = row + rows * task // tasks, row + rows * (task + 1) // tasks
        for d in range(a.D):
            zx = a.scratch + a.hoisted + d * a.hoisted_size - row * vectors * row_bytes
            project(arguments, d, 0, vectors, start, stop, zx, task)

    return context.symbols.add(project_task)


def _add_by_columns(
    context: CodegenContext, common: CommonFunctions, recur: Any, window_end: Any
) -> Any:
    """A whole call that is divided by hidden columns, or whose weights are not packed."""
    unpack, next_task = memory.unpack_arguments(ForwardArguments), common.next_task

    def by_columns(arguments: int, thread: int, threads: int) -> None:
        a = unpack(arguments)
        parts = a.parts if threads > 1 and threads >= a.parts else 1
        groups, size = threads // parts, LINE * (1 + threads)
        task = next_task(a.sync, thread, threads, 0, -1, 1) if groups > 1 else thread
        while task >= 0:
            if task // parts < groups:
                for d in range(task // parts, a.D, groups):
                    area = a.sync + size * (1 + d)
                    start, row = 0, 0
                    while start < a.T:
                        stop = window_end(arguments, start, a.T, row, 0)
                        row_stop = window_end(arguments, start, a.T, row, 1)
                        begin = a.N if d == 1 else row
                        recur(
                            *(arguments, d, 0, a.B, 1, start, stop, begin),
                            *(1 - a.direct, 1, area, task % parts, parts, 0, row, row_stop, task),
                        )
                        start, row = stop, row_stop
            task = next_task(a.sync, thread, threads, 0, task, 1) if groups > 1 else -1

    return context.symbols.add(by_columns)


def _add_slices(context: CodegenContext, recur: Any) -> Any:
    """A task's slices, from step `start`, whose first row is `row`, to step `stop`."""
    unpack, minimum = memory.unpack_arguments(ForwardArguments), memory.minimum()

    def slices(arguments: int, task: int, tasks: int, start: int, stop: int, row: int) -> None:
        a = unpack(arguments)
        for unit in range(task, a.D * a.slices, tasks):
            low = unit % a.slices
            high = a.B
            if a.stride == 1:
                low *= a.slice_rows
                high = minimum(a.B, low + a.slice_rows)
            d = unit // a.slices
            begin = a.N if d == 1 else row
            recur(
                *(arguments, d, low, high, a.stride, start, stop, begin),
                *(a.hoist, 0, 0, 0, 1, 0, row, 0, task),
            )

    return context.symbols.add(slices)


def _add_recur(context: CodegenContext, common: CommonFunctions, prepare: Any, step: Any) -> Any:
    """The time loop over batch rows `low`, `low + stride`, ... below `high`.

    Direction 0 runs from step `start` to `stop`. Direction 1 runs through all steps from the last
    to the first, and so `start` is 0 and `stop` is T. `row` is the first row of these steps, or one
    past their last row for direction 1. `hoisted` is 1 if the input projection of the rows from
    `window_row` on is computed before the steps. If `unready` is 1, the first step calls `prepare`,
    which packs the weights before step 0 and writes that projection, up to row `window_stop`.

    If `parts` > 1, that many threads divide the hidden columns, and each step is a phase of `area`
    (see `work_stealing`), the first of which is step `origin`; `own` is this thread's part. `place`
    numbers the memory for pre-activations, which is theirs.
    """
    unpack, minimum, first_from = (
        memory.unpack_arguments(ForwardArguments),
        memory.minimum(),
        memory.first_from(),
    )
    read_int, next_task, copy_rows = memory.read_int(), common.next_task, common.copy_rows
    lanes, size = context.lanes.count, context.storage.itemsize
    row_bytes = context.layout.gates * context.lanes.vector_bytes

    def recur(
        arguments: int,
        d: int,
        low: int,
        high: int,
        stride: int,
        start: int,
        stop: int,
        row: int,
        hoisted: int,
        unready: int,
        area: int,
        own: int,
        parts: int,
        origin: int,
        window_row: int,
        window_stop: int,
        place: int,
    ) -> None:
        a = unpack(arguments)
        ld, ld_y = a.P * size, a.D * a.P * size
        y, h0, h_n = a.y + d * ld, a.h0 + d * a.B * ld, a.h_n + d * a.B * ld
        vectors, part = (a.H + lanes - 1) // lanes, own
        zx = a.scratch + a.hoisted + d * a.hoisted_size - window_row * vectors * row_bytes
        first, last = vectors * part // parts, vectors * (part + 1) // parts
        row_before, size_before = 0, 0
        if start > 0:
            size_before = a.B if a.sizes == 0 else read_int(a.sizes + 8 * (start - 1))
            row_before = row - size_before
        for s in range(start, stop):
            t = s if d == 0 else a.T - 1 - s
            now = a.B if a.sizes == 0 else read_int(a.sizes + 8 * t)
            if d != 0:
                row -= now
            top = minimum(high, now)
            fresh = first_from(low, stride, minimum(top, size_before))
            following = 0
            if d == 0 and s + 1 < a.T:
                following = a.B if a.sizes == 0 else read_int(a.sizes + 8 * (t + 1))
            task = next_task(area, own, parts, s - origin, -1, 0) if parts > 1 else 0
            while task >= 0:
                if task != part:
                    part = task
                    first, last = vectors * part // parts, vectors * (part + 1) // parts
                if unready != 0 and s == start:
                    packing = 1 if s == 0 else 0
                    prepare(
                        *(arguments, d, first, last, packing, window_row, window_stop, zx, place)
                    )
                if fresh > low:
                    h, rows = y + (row_before + low) * ld_y, (fresh - low) // stride
                    step(
                        *(arguments, d, first, last, hoisted, stride, row + low, rows),
                        *(h, ld_y * stride, low, 0, zx, place),
                    )
                if top > fresh:
                    h, rows = h0 + fresh * ld, (top - fresh + stride - 1) // stride
                    step(
                        *(arguments, d, first, last, hoisted, stride, row + fresh, rows),
                        *(h, ld * stride, fresh, 1, zx, place),
                    )
                if d == 0 or t == 0:
                    ended = first_from(low, stride, following)
                    rows = (top - ended + stride - 1) // stride
                    to, source = h_n + ended * ld, y + (row + ended) * ld_y
                    begin, end = first, last
                    if a.P != a.H:  # such a layer is not divided by columns
                        begin, end = 0, (a.P + lanes - 1) // lanes
                    copy_rows(to, ld * stride, source, ld_y * stride, rows, begin, end, a.P)
                task = next_task(area, own, parts, s - origin, task, 0) if parts > 1 else -1
            row_before, size_before = row, now
            if d == 0:
                row += now

    return context.symbols.add(recur)

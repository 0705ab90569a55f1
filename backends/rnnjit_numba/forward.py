"""The forward kernel: a whole sequence of one layer, all directions, in one call.

    h_t = f(W_ih x_t + b_ih + b_hh + W_hh h_{t-1})

f is the cell's step. The batch is cut into slices, so that threads run the whole time loop without
waiting for each other. If there are too few rows for that, each thread computes a part of the
hidden columns of a slice (`parts`), and the threads synchronise after each step. They also do so at
the end of a packed batch, where few sequences continue (`tail`). No thread waits for one that has
not begun (see `work_stealing`). Weights are packed once per call into column vectors
`[V][K][lanes]`, from which the register tiles stream. Results are the same, bit for bit, whatever
the plan.

The first arguments of each function are the address of a `ForwardArguments`, which has the shapes,
the direction `d`, and a range of column vectors of the hidden features, from `first` up to but not
including `last`. Addresses and distances are in bytes; the caller owns all memory.
"""

from __future__ import annotations

from typing import Any

from rnnjit.codegen.kernel import LINE
from rnnjit_numba import memory, pointwise
from rnnjit_numba.arguments import ForwardArguments
from rnnjit_numba.context import STEP, CodegenContext, CommonFunctions
from rnnjit_numba.direct import DIRECT_ROWS, direct
from rnnjit_numba.preparation import add_preparation


def add_forward(context: CodegenContext, common: CommonFunctions) -> None:
    """Add the kernel `forward(arguments, thread, threads)`, which each thread calls."""
    unpack, next_task = memory.unpack_arguments(ForwardArguments), common.next_task
    read_int = memory.read_int()
    pack, pack_bias, project, prepare = add_preparation(context, common)
    recur = _add_recur(context, common, prepare)
    by_columns, slices = _add_by_columns(context, common, recur), _add_slices(context, recur)
    lanes = context.lanes.count

    def forward(arguments: int, thread: int, threads: int) -> None:
        a = unpack(arguments)
        if a.parts > 1 or a.direct != 0:
            by_columns(arguments, thread, threads)
            return
        vectors, phase = (a.H + lanes - 1) // lanes, 0
        task = next_task(a.sync, thread, threads, phase, -1, 0)
        while task >= 0:
            for unit in range(task, a.D * vectors, threads):
                pack_bias(arguments, unit // vectors, unit % vectors, unit % vectors + 1)
                pack(arguments, unit // vectors, unit % vectors, unit % vectors + 1)
            task = next_task(a.sync, thread, threads, phase, task, 0)
        if a.hoist != 0:
            phase += 1
            task = next_task(a.sync, thread, threads, phase, -1, 0)
            while task >= 0:
                start, stop = a.N * task // threads, a.N * (task + 1) // threads
                for d in range(a.D):
                    project(arguments, d, 0, vectors, start, stop)
                task = next_task(a.sync, thread, threads, phase, task, 0)
        tail_start, row = a.T, a.N
        if a.tail > 0 and threads > 1:
            while tail_start > 0 and read_int(a.sizes + 8 * (tail_start - 1)) < a.tail:
                tail_start -= 1
                row -= read_int(a.sizes + 8 * tail_start)
        last = 1 if tail_start == a.T else 0
        phase += 1
        task = next_task(a.sync, thread, threads, phase, -1, last)
        while task >= 0:
            slices(arguments, task, threads, tail_start)
            task = next_task(a.sync, thread, threads, phase, task, last)
        if last == 0:
            area = a.sync + LINE * (1 + threads)
            recur(arguments, 0, 0, a.B, 1, tail_start, a.T, row, a.hoist, 0, area, thread, threads)

    context.symbols.add(forward)


def _add_by_columns(context: CodegenContext, common: CommonFunctions, recur: Any) -> Any:
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
                    recur(
                        *(arguments, d, 0, a.B, 1, 0, a.T, a.N * d, 1 - a.direct, 1),
                        *(area, task % parts, parts),
                    )
            task = next_task(a.sync, thread, threads, 0, task, 1) if groups > 1 else -1

    return context.symbols.add(by_columns)


def _add_slices(context: CodegenContext, recur: Any) -> Any:
    """A task's slices, from the first step to step `stop`."""
    unpack, minimum = memory.unpack_arguments(ForwardArguments), memory.minimum()

    def slices(arguments: int, task: int, tasks: int, stop: int) -> None:
        a = unpack(arguments)
        for unit in range(task, a.D * a.slices, tasks):
            low = unit % a.slices
            high = a.B
            if a.stride == 1:
                low *= a.slice_rows
                high = minimum(a.B, low + a.slice_rows)
            d = unit // a.slices
            recur(arguments, d, low, high, a.stride, 0, stop, a.N * d, a.hoist, 0, 0, 0, 1)

    return context.symbols.add(slices)


def _add_recur(context: CodegenContext, common: CommonFunctions, prepare: Any) -> Any:
    """The time loop over batch rows `low`, `low + stride`, ... below `high`.

    Direction 0 runs from step `start` to `stop`. Direction 1 runs through all steps from the last
    to the first, and so `start` is 0 and `stop` is T. `row` is the first row of these steps, or one
    past their last row for direction 1. `hoisted` is 1 if the steps begin with the input projection
    in y. If `unready` is 1, the first step calls `prepare`, which packs the weights and writes that
    projection.

    If `parts` > 1, that many threads divide the hidden columns, and each step is a phase of `area`
    (see `work_stealing`); `own` is this thread's part.
    """
    unpack, minimum, first_from = (
        memory.unpack_arguments(ForwardArguments),
        memory.minimum(),
        memory.first_from(),
    )
    read_int, next_task = memory.read_int(), common.next_task
    step, copy_rows = _add_step(context, common), common.copy_rows
    lanes, size = context.lanes.count, context.lanes.itemsize

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
    ) -> None:
        a = unpack(arguments)
        ld, ld_y = a.H * size, a.D * a.H * size
        y, h0, h_n = a.y + d * ld, a.h0 + d * a.B * ld, a.h_n + d * a.B * ld
        vectors, part = (a.H + lanes - 1) // lanes, own
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
            task = next_task(area, own, parts, s - start, -1, 0) if parts > 1 else 0
            while task >= 0:
                if task != part:
                    part = task
                    first, last = vectors * part // parts, vectors * (part + 1) // parts
                if unready != 0 and s == start:
                    prepare(arguments, d, first, last)
                if fresh > low:
                    h, rows = y + (row_before + low) * ld_y, (fresh - low) // stride
                    step(
                        *(arguments, d, first, last, hoisted, stride, row + low, rows),
                        *(h, ld_y * stride),
                    )
                if top > fresh:
                    h, rows = h0 + fresh * ld, (top - fresh + stride - 1) // stride
                    step(
                        *(arguments, d, first, last, hoisted, stride, row + fresh, rows),
                        *(h, ld * stride),
                    )
                if d == 0 or t == 0:
                    ended = first_from(low, stride, following)
                    rows = (top - ended + stride - 1) // stride
                    to, source = h_n + ended * ld, y + (row + ended) * ld_y
                    copy_rows(to, ld * stride, source, ld_y * stride, rows, first, last, a.H)
                task = next_task(area, own, parts, s - start, task, 0) if parts > 1 else -1
            row_before, size_before = row, now
            if d == 0:
                row += now

    return context.symbols.add(recur)


def _add_step(context: CodegenContext, common: CommonFunctions) -> Any:
    """One time step of `rows` rows from `row` on, `stride` apart; `h` has their previous states."""
    unpack, affine = memory.unpack_arguments(ForwardArguments), common.affine
    step_direct = _add_step_direct(context)
    lanes, size = context.lanes.count, context.lanes.itemsize

    def step(
        arguments: int,
        d: int,
        first: int,
        last: int,
        hoisted: int,
        stride: int,
        row: int,
        rows: int,
        h: int,
        ld_h: int,
    ) -> None:
        a = unpack(arguments)
        base = a.scratch + d * a.packed
        ld_x, ld_y = a.I * size, a.D * a.H * size
        x, y = a.x + row * ld_x, a.y + row * ld_y + d * a.H * size
        if a.direct != 0:
            step_direct(arguments, d, first, last, x, y, rows, h, ld_h)
            return
        ld_x, ld_y = ld_x * stride, ld_y * stride
        init, ld_init, inputs = base + (a.H + lanes - 1) // lanes * a.packed_row, 0, a.I
        if hoisted != 0:
            init, ld_init, inputs = y, ld_y, 0
        affine(
            *(init, ld_init, x, ld_x, inputs, base),
            *(h, ld_h, a.H, base + a.packed_inputs, a.packed_row),
            *(y, ld_y, rows, first, last, a.H, STEP, a.tile),
        )

    return context.symbols.add(step)


def _add_step_direct(context: CodegenContext) -> Any:
    """One time step of `rows` rows at `x`, with weights read in place."""
    unpack, minimum = memory.unpack_arguments(ForwardArguments), memory.minimum()
    tile, step = direct(context.lanes), pointwise.step(context.lanes, context.cell)
    lanes, vector_bytes, size = (
        context.lanes.count,
        context.lanes.vector_bytes,
        context.lanes.itemsize,
    )

    def step_direct(
        arguments: int,
        d: int,
        first: int,
        last: int,
        x: int,
        y: int,
        rows: int,
        h: int,
        ld_h: int,
    ) -> None:
        a = unpack(arguments)
        w_ih, w_hh = (a.w_ih_0, a.w_hh_0) if d == 0 else (a.w_ih_1, a.w_hh_1)
        bias = a.scratch + d * a.packed
        ld_x, ld_h_row, ld_y = a.I * size, a.H * size, a.D * a.H * size
        for v in range(first, last):
            count = minimum(lanes, a.H - v * lanes)
            at = v * vector_bytes
            w_x, w_h = w_ih + v * lanes * ld_x, w_hh + v * lanes * ld_h_row
            done = 0
            while done < rows:
                some = 0
                for n in DIRECT_ROWS:
                    if some == 0 and rows - done >= n:
                        some = n
                out = y + done * ld_y + at
                tile(
                    *(some, bias + at, 0, x + done * ld_x, ld_x, a.I, w_x, ld_x),
                    *(h + done * ld_h, ld_h, a.H, w_h, ld_h_row, out, ld_y * 256 + count),
                )
                for r in range(some):
                    step(out + r * ld_y, count)
                done += some

    return context.symbols.add(step_direct)

"""The backward kernel: all gradients of one layer, all directions, in one call.

Each direction runs through its steps in reverse order (Werbos, "Backpropagation through time",
Proc. IEEE 78(10), 1990). Where g_t is the gradient that reaches h_t from h_n and the next step, and
those of other states likewise:

    dz_t, s_t = derivative of the cell's step, of g_t + grad_y_t and the gradients of other states
    g_{t-1} = s_t + W_hh^T dz_t

dz_t is the gradient of the accumulators, and s_t what reaches h_{t-1} without W_hh (see
`cell_step_backward`). With a projection, the step gets W_hr^T (g_t + grad_y_t). Only this
recurrence runs step by step; the other gradients are one reduction each over all rows (see
`reductions`).

dz of a row has the blocks of `cell_layout`, each of H columns, and then, where there is a
projection, the P columns of g_t + grad_y_t. It is stored for one window of steps at a time. The
window's reductions are done while dz is in the caches; then the window moves to earlier steps. Rows
that are still needed move with it: those of the last step computed, and those of an incomplete
block of the reductions.

The first arguments of each function are the address of a `BackwardArguments`, which has the shapes,
the direction `d`, and a range of column vectors of the hidden features, from `first` up to but not
including `last`. Addresses and distances are in bytes; the caller owns all memory.
"""

from __future__ import annotations

from typing import Any

from rnnjit.codegen.kernel import LINE
from rnnjit.codegen.plan import REDUCTION_ROWS, ROW_BLOCK
from rnnjit_numba import memory
from rnnjit_numba.arguments import BackwardArguments, state_argument
from rnnjit_numba.backward_step import add_step
from rnnjit_numba.context import NOTHING, CodegenContext, CommonFunctions
from rnnjit_numba.reductions import add_reduce


def add_backward(context: CodegenContext, common: CommonFunctions) -> None:
    """Add the kernel `backward(arguments, thread, threads)`, which each thread calls."""
    unpack, write_int = memory.unpack_arguments(BackwardArguments), memory.write_int()
    read_int, minimum, maximum = memory.read_int(), memory.minimum(), memory.maximum()
    next_task = common.next_task
    pack, move = _add_pack_task(context), _add_move(context, common)
    propagate, reduce = _add_propagate(context, common), add_reduce(context, common)
    recur, initial = _add_recur_task(context, common, propagate), _add_initial(context, propagate)
    size = context.storage.itemsize
    dz_field = 8 * BackwardArguments._fields.index("dz")

    def backward(arguments: int, thread: int, threads: int) -> None:
        a = unpack(arguments)
        ld = a.dz_columns * size
        blocks = (a.N + REDUCTION_ROWS - 1) // REDUCTION_ROWS
        stop, row_stop, kept, phase = a.T, a.N, 0, 0
        while stop > 0:
            start, row, last = stop, row_stop, 0
            while start > 0:
                rows = a.B if a.sizes == 0 else read_int(a.sizes + 8 * (start - 1))
                if start < stop and row_stop - row + rows > a.window:
                    break
                start, row, last = start - 1, row - rows, rows
            task = next_task(a.sync, thread, threads, phase, -1, 0)
            while task >= 0:
                if stop < a.T:
                    move(arguments, task, threads, row_stop - row, kept)
                else:
                    pack(arguments, task, threads)
                if task == 0:
                    write_int(arguments + dz_field, a.dz_buffer - row * ld)
                task = next_task(a.sync, thread, threads, phase, task, 0)
            task = next_task(a.sync, thread, threads, phase + 1, -1, 0)
            while task >= 0:
                recur(arguments, task, threads, start, stop, row_stop)
                task = next_task(a.sync, thread, threads, phase + 1, task, 0)
            first = (row + REDUCTION_ROWS - 1) // REDUCTION_ROWS
            final = 1 if start == 0 else 0
            task = next_task(a.sync, thread, threads, phase + 2, -1, final)
            while task >= 0:
                reduce(arguments, task, threads, row, row_stop, first, blocks)
                if final != 0 and a.grad_h0 != 0:
                    initial(arguments, task, threads)
                task = next_task(a.sync, thread, threads, phase + 2, task, final)
            kept = minimum(maximum(last, first * REDUCTION_ROWS - row), a.N - row)
            stop, row_stop, blocks = start, row, first
            phase += 3

    context.symbols.add(backward)


def _add_pack_task(context: CodegenContext) -> Any:
    """A task's part of packing W_hh, W_ih where grad_x is needed, and W_hr."""
    unpack = memory.unpack_arguments(BackwardArguments)
    pack, lanes, has_product = _add_pack_back(context), context.lanes.count, context.product

    def pack_task(arguments: int, task: int, tasks: int) -> None:
        a = unpack(arguments)
        wide_k, wide_i, wide_h = (
            (a.P * has_product + lanes - 1) // lanes,
            (a.I + lanes - 1) // lanes,
            (a.H + lanes - 1) // lanes,
        )
        inputs = wide_k + (wide_i if a.grad_x != 0 else 0)
        columns = inputs + (wide_h if a.P != a.H else 0)
        first, last = columns * task // tasks, columns * (task + 1) // tasks
        for d in range(a.D):
            pack(arguments, d, first, last, inputs)

    return context.symbols.add(pack_task)


def _add_recur_task(context: CodegenContext, common: CommonFunctions, propagate: Any) -> Any:
    """A task's part of the recurrence from step `stop` down to step `start`.

    `row_stop` is one past the last row of these steps.
    """
    unpack, minimum = memory.unpack_arguments(BackwardArguments), memory.minimum()
    read_int, recur = memory.read_int(), _add_recur(context, common, propagate)

    def recur_task(
        arguments: int, task: int, tasks: int, start: int, stop: int, row_stop: int
    ) -> None:
        a = unpack(arguments)
        tail_start, row, parts = stop, row_stop, tasks
        if a.parts > 1 and tasks >= a.D * a.parts:
            tail_start, parts = start, a.parts
        elif a.tail > 0 and tasks > 1:
            while tail_start > start and read_int(a.sizes + 8 * (tail_start - 1)) < a.tail:
                tail_start -= 1
                row -= read_int(a.sizes + 8 * tail_start)
        d, own = task // parts, task % parts
        if tail_start < stop and d < a.D:
            area = a.sync + LINE * (1 + tasks) * (1 + d)
            recur(arguments, d, 0, a.B, 1, tail_start, stop, row_stop, area, own, parts, d)
        if tail_start == start:
            return
        for unit in range(task, a.D * a.slices, tasks):
            low = unit % a.slices
            high = a.B
            if a.stride == 1:
                low *= a.slice_rows
                high = minimum(a.B, low + a.slice_rows)
            d = unit // a.slices
            recur(arguments, d, low, high, a.stride, start, tail_start, row, 0, 0, 1, task)

    return context.symbols.add(recur_task)


def _add_move(context: CodegenContext, common: CommonFunctions) -> Any:
    """Move a task's columns of the first `kept` rows of the window up by `rows` rows."""
    unpack, copy_rows = memory.unpack_arguments(BackwardArguments), common.copy_rows
    lanes, size = context.lanes.count, context.storage.itemsize

    def move(arguments: int, task: int, tasks: int, rows: int, kept: int) -> None:
        a = unpack(arguments)
        ld, vectors = a.dz_columns * size, (a.dz_columns + lanes - 1) // lanes
        first, last = vectors * task // tasks, vectors * (task + 1) // tasks
        # From the last row to the first, since source and destination may overlap.
        source = a.dz_buffer + (kept - 1) * ld
        copy_rows(source + rows * ld, -ld, source, -ld, kept, first, last, a.dz_columns)

    return context.symbols.add(move)


def _add_pack_back(context: CodegenContext) -> Any:
    """Pack columns of W_hh, then of W_ih, then of W_hr, as column vectors `[K][lanes]`, then zeros.

    K is G*H for the first two, and P for W_hr. Those of pairs are as in `storage`, with rows of
    zeros in W_ih that make the rows of each gate even, so that one can begin with any gate. `first`
    and `last` number the column vectors of all; those from `inputs` on are W_hr's. A call with
    `first` 0 also writes the zeros.
    """
    unpack = memory.unpack_arguments(BackwardArguments)
    copy, pack_rows = (
        memory.copy(context.computed, context.computed),
        memory.pack_rows(context.storage),
    )
    minimum, maximum = memory.minimum(), memory.maximum()
    lanes, vector_bytes, size = (
        context.lanes.count,
        context.lanes.vector_bytes,
        context.storage.itemsize,
    )
    G, has_product = context.layout.gates, context.product
    terms, term_bytes = context.storage.terms, context.storage.packed_bytes

    def pack_back(arguments: int, d: int, first: int, last: int, inputs: int) -> None:
        a = unpack(arguments)
        base = a.scratch + d * a.packed
        wide_p, wide_i, wide_h = (
            (a.P + lanes - 1) // lanes,
            (a.I + lanes - 1) // lanes,
            (a.H + lanes - 1) // lanes,
        )
        wide_k = wide_p * has_product
        out = base + (wide_k + wide_i) * a.packed_column
        # Rows in blocks, so that the reads of a block stay within a few pages.
        for low in range(0, G * a.H if a.direct == 0 else 0, ROW_BLOCK):
            for column in range(first, last):
                high = minimum(G * a.H, low + ROW_BLOCK)
                w, columns, v = (a.w_hh_0 if d == 0 else a.w_hh_1), a.P, column
                to = base + column * a.packed_column
                if column >= inputs:
                    w, columns, v = (a.w_hr_0 if d == 0 else a.w_hr_1), a.H, column - inputs
                    to, high = out + v * a.packed_out, minimum(a.P, high)
                elif column >= wide_k:
                    w, columns, v = (a.w_ih_0 if d == 0 else a.w_ih_1), a.I, column - wide_k
                count = minimum(lanes, columns - v * lanes)
                rows, k = G * a.H, low
                if column >= inputs:
                    rows = a.P
                elif terms > 1 and column >= wide_k:
                    rows = a.H
                # No group of terms crosses the end of its `rows` rows.
                k += k % rows % terms
                while k < high:
                    row = k % rows
                    place = (
                        to + (k // rows * ((rows + terms - 1) // terms * terms) + row) * term_bytes
                    )
                    source = w + (k * columns + v * lanes) * size
                    pack_rows(place, source, columns * size, rows - row, count, lanes)
                    k += minimum(terms, rows - row)
        if first == 0:
            zeros = out + wide_h * a.packed_out
            for v in range(maximum(maximum(wide_p, wide_h), wide_i)):
                copy(zeros + v * vector_bytes, 0, 0, lanes)

    return context.symbols.add(pack_back)


def _add_recur(context: CodegenContext, common: CommonFunctions, propagate: Any) -> Any:
    """The time loop over batch rows `low`, `low + stride`, ... below `high`: dz.

    Direction 0 runs from step `stop` down to `start`. Direction 1 runs through all steps, and so
    `start` is 0 and `stop` is T. `row_stop` is one past the last row of these steps.

    If `parts` > 1, that many threads divide the hidden columns, and each step is a phase of `area`
    (see `work_stealing`); `own` is this thread's part. `place` numbers the memory for gradients
    before the projection, which is theirs.
    """
    unpack, minimum, first_from = (
        memory.unpack_arguments(BackwardArguments),
        memory.minimum(),
        memory.first_from(),
    )
    read_int, next_task = memory.read_int(), common.next_task
    begin, step = _add_begin(context, common), add_step(context, common)
    record_previous = _add_record_previous(context)
    reads_states = int(context.layout.reads_states)
    lanes, size = context.lanes.count, context.storage.itemsize

    def recur_back(
        arguments: int,
        d: int,
        low: int,
        high: int,
        stride: int,
        start: int,
        stop: int,
        row_stop: int,
        area: int,
        own: int,
        parts: int,
        place: int,
    ) -> None:
        a = unpack(arguments)
        ld = a.dz_columns * size
        dz = a.dz + d * a.N * ld
        vectors, part = (a.H + lanes - 1) // lanes, own
        first, last = vectors * part // parts, vectors * (part + 1) // parts
        row = row_stop if d == 0 else 0
        row_after, size_after = row, 0
        if stop < a.T:
            size_after = a.B if a.sizes == 0 else read_int(a.sizes + 8 * stop)
        for s in range(a.T - stop, a.T - start):
            t = a.T - 1 - s if d == 0 else s
            now = a.B if a.sizes == 0 else read_int(a.sizes + 8 * t)
            if d == 0:
                row -= now
            top = minimum(high, now)
            # Rows that continue in the step computed just before get its gradient through W_hh. For
            # the other rows this is the last state, and they get the gradient of h_n.
            fresh = first_from(low, stride, minimum(top, size_after))
            # The states before the step: y for the first `previous` rows, h0 for the others.
            previous, row_previous = 0, row + now
            if d == 0 and t > 0:
                previous = a.B if a.sizes == 0 else read_int(a.sizes + 8 * (t - 1))
                row_previous = row - previous
            if d != 0 and s + 1 < a.T:
                previous = a.B if a.sizes == 0 else read_int(a.sizes + 8 * (t + 1))
            linked = first_from(low, stride, minimum(top, previous))
            if reads_states == 0 or linked > top:
                linked = top
            task = next_task(area, own, parts, s, -1, 0) if parts > 1 else 0
            while task >= 0:
                if task != part:
                    part = task
                    first, last = vectors * part // parts, vectors * (part + 1) // parts
                if fresh > low:
                    rows = (fresh - low) // stride
                    propagate(
                        arguments, d, first, last, stride, dz + (row_after + low) * ld, low, rows
                    )
                if top > fresh:
                    rows = (top - fresh + stride - 1) // stride
                    begin(arguments, d, first, last, stride, fresh, rows)
                if linked > low:
                    rows = (linked - low + stride - 1) // stride
                    step(
                        *(arguments, d, first, last, stride, row + low, low, rows),
                        *(row_previous + low, 0, place),
                    )
                if top > linked:
                    rows = (top - linked + stride - 1) // stride
                    step(
                        *(arguments, d, first, last, stride, row + linked, linked, rows),
                        *(0, 1, place),
                    )
                if a.before != 0 and part == 0:
                    record_previous(
                        arguments, d, stride, row, row_previous, low, minimum(top, previous), top
                    )
                task = next_task(area, own, parts, s, task, 0) if parts > 1 else -1
            row_after, size_after = row, now
            if d != 0:
                row += now

    return context.symbols.add(recur_back)


def _add_begin(context: CodegenContext, common: CommonFunctions) -> Any:
    """The gradients of the last states of `rows` sequences from `b` on, before their last step."""
    unpack, read_int = memory.unpack_arguments(BackwardArguments), memory.read_int()
    copy_rows, states = common.copy_computed, len(context.cell.states)
    lanes, size = context.lanes.count, context.lanes.itemsize
    of_states = [
        tuple(8 * state_argument(BackwardArguments, k, which) for k in range(1, states)) or (0,)
        for which in (2, 3)
    ]
    ends, starts = of_states

    def begin(
        arguments: int, d: int, first: int, last: int, stride: int, b: int, rows: int
    ) -> None:
        a = unpack(arguments)
        place, ld = (d * a.B + b) * a.P * size, a.P * size * stride
        own = a.grad_h0 if a.grad_h0 != 0 else a.scratch + a.grad_h
        source = a.grad_h_n + place if a.grad_h_n != 0 else 0
        low, high = first, last
        if a.P != a.H:  # such a layer is not divided by columns
            low, high = 0, (a.P + lanes - 1) // lanes
        copy_rows(own + place, ld, source, ld, rows, low, high, a.P)
        place, ld = (d * a.B + b) * a.H * size, a.H * size * stride
        for k in range(states - 1):
            source, own = read_int(arguments + ends[k]), read_int(arguments + starts[k])
            if source != 0:
                source += place
            if own == 0:
                own = a.scratch + a.grad_states + k * a.D * a.B * a.H * size
            copy_rows(own + place, ld, source, ld, rows, first, last, a.H)

    return context.symbols.add(begin)


def _add_initial(context: CodegenContext, propagate: Any) -> Any:
    """A task's columns of grad_h0: the gradient that the first step of each sequence passes on.

    In direction 0 that is step 0, in direction 1 the step at which the sequence ends.
    """
    unpack, read_int = memory.unpack_arguments(BackwardArguments), memory.read_int()
    lanes, size = context.lanes.count, context.storage.itemsize

    def initial(arguments: int, task: int, tasks: int) -> None:
        a = unpack(arguments)
        ld, vectors = a.dz_columns * size, (a.P + lanes - 1) // lanes
        first, last = vectors * task // tasks, vectors * (task + 1) // tasks
        propagate(arguments, 0, first, last, 1, a.dz, 0, a.B)
        row = 0
        for t in range(a.T if a.D == 2 else 0):
            now, following = a.B, 0
            if a.sizes != 0:
                now = read_int(a.sizes + 8 * t)
            if t + 1 < a.T:
                following = a.B if a.sizes == 0 else read_int(a.sizes + 8 * (t + 1))
            if now > following:
                source = a.dz + (a.N + row + following) * ld
                propagate(arguments, 1, first, last, 1, source, following, now - following)
            row += now

    return context.symbols.add(initial)


def _add_record_previous(context: CodegenContext) -> Any:
    """Write the addresses of the states before rows `low` to `top` of a step.

    The states before rows below `linked` are in y, the others in h0.
    """
    unpack, write_int = memory.unpack_arguments(BackwardArguments), memory.write_int()
    first_from = memory.first_from()
    size = context.storage.itemsize

    def record_previous(
        arguments: int,
        d: int,
        stride: int,
        row: int,
        row_previous: int,
        low: int,
        linked: int,
        top: int,
    ) -> None:
        a = unpack(arguments)
        ld = a.P * size
        to = a.before + (d * a.N + row) * 8
        for b in range(low, linked, stride):
            write_int(to + 8 * b, a.y + ((row_previous + b) * a.D + d) * ld)
        for b in range(first_from(low, stride, linked), top, stride):
            write_int(to + 8 * b, a.h0 + (d * a.B + b) * ld)

    return context.symbols.add(record_previous)


def _add_propagate(context: CodegenContext, common: CommonFunctions) -> Any:
    """The gradient that reaches the states before `rows` rows of dz: of sequences from `b` on.

    It adds dz @ W_hh, if there is a product, to what the cell's step left there, if it did. Of a
    projected layer, which is
    not divided by columns in a step, it computes all P columns if `first` is 0 and `last` the
    number of vectors of hidden units.
    """
    unpack, affine = memory.unpack_arguments(BackwardArguments), common.affine
    product, passes_state = common.product, int(context.layout.passes_state)
    lanes, size, copy_rows = context.lanes.count, context.storage.itemsize, common.copy_computed
    G, has_product = context.layout.gates, context.product
    computed_size = context.computed.itemsize

    def propagate(
        arguments: int, d: int, first: int, last: int, stride: int, dz: int, b: int, rows: int
    ) -> None:
        a = unpack(arguments)
        ld, ld_to = a.dz_columns * size, a.P * computed_size
        base = a.scratch + d * a.packed
        wide_p, wide_i, wide_h = (
            (a.P + lanes - 1) // lanes,
            (a.I + lanes - 1) // lanes,
            (a.H + lanes - 1) // lanes,
        )
        if a.P != a.H and last == wide_h:
            last = wide_p
        zeros = base + (wide_p + wide_i) * a.packed_column + wide_h * a.packed_out
        to = a.grad_h0 if a.grad_h0 != 0 else a.scratch + a.grad_h
        to += (d * a.B + b) * ld_to
        if has_product == 0:
            if passes_state == 0:
                copy_rows(to, ld_to * stride, 0, 0, rows, first, last, a.P)
            return
        init, ld_init = zeros, 0
        if passes_state != 0:
            init, ld_init = to, ld_to * stride
        if a.direct != 0:
            w_hh = a.w_hh_0 if d == 0 else a.w_hh_1
            product(init, ld_init, dz, ld, G * a.H, w_hh, a.P, to, ld_to, rows, first, last)
            return
        affine(
            *(init, ld_init, 0, 0, 0, base, dz, ld * stride, G * a.H, base, a.packed_column),
            *(to, ld_to * stride, rows, first, last, a.P, NOTHING, a.tile),
        )

    return context.symbols.add(propagate)

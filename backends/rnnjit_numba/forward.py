"""The forward kernel: a whole sequence of one layer, all directions, in one call.

    h_t = activation(W_ih x_t + b_ih + b_hh + W_hh h_{t-1})

The batch is cut into slices whose rows never meet, so that threads run the whole time loop without
waiting for each other. Where there are too few rows for that, threads share the hidden columns of a
slice (`parts`) and meet at a barrier each step; so they do at the end of a packed batch, where few
sequences go on (`tail`). Weights are packed once per call into column
vectors `[V][K][lanes]`, from which the register tiles stream. No plan changes any bit of a result.

Each function takes the address of a `ForwardArguments` first, then direction `d`, and column
vectors `first` to `last` of the hidden features.
"""

from __future__ import annotations

from typing import Any

from rnnjit_numba import memory, pointwise
from rnnjit_numba.arguments import ForwardArguments
from rnnjit_numba.direct import DIRECT_ROWS, direct
from rnnjit_numba.plan import ROW_BLOCK
from rnnjit_numba.toolbox import ACTIVATE, NOTHING, Common, Toolbox


def add_forward(tools: Toolbox, common: Common) -> None:
    """Add the kernel `forward(arguments, thread, threads)`, which each thread calls."""
    unpack = memory.unpack_arguments(ForwardArguments)
    meet, least, read_int = memory.arrive_and_wait(), memory.least(), memory.read_int()
    pack, pack_bias = _add_pack(tools), _add_pack_bias(tools)
    project, recur = _add_project(tools, common), _add_recur(tools, common)
    lanes = tools.lanes.count

    def forward(arguments: int, thread: int, threads: int) -> None:
        a = unpack(arguments)
        vectors = (a.H + lanes - 1) // lanes
        if a.parts > 1 or a.direct != 0:
            parts = a.parts if threads >= a.parts else 1
            groups = threads // parts
            group, part = thread // parts, thread % parts
            first, last = vectors * part // parts, vectors * (part + 1) // parts
            if group < groups:
                for d in range(group, a.D, groups):
                    pack_bias(arguments, d, first, last)
                    if a.direct == 0:
                        pack(arguments, d, first, last)
                        project(arguments, d, first, last, 0, a.N)
                    hoisted = 1 - a.direct
                    recur(
                        *(arguments, d, first, last, 0, a.B, 1, 0, a.T, a.N * d, hoisted),
                        *(a.sync + 64 * d, parts),
                    )
            return
        for unit in range(thread, a.D * vectors, threads):
            pack_bias(arguments, unit // vectors, unit % vectors, unit % vectors + 1)
            pack(arguments, unit // vectors, unit % vectors, unit % vectors + 1)
        if threads > 1:
            meet(a.sync, threads)
        if a.hoist != 0:
            for d in range(a.D):
                start, stop = a.N * thread // threads, a.N * (thread + 1) // threads
                project(arguments, d, 0, vectors, start, stop)
            if threads > 1:
                meet(a.sync, 2 * threads)
        turn, row = a.T, a.N
        if a.tail > 0 and threads > 1:
            while turn > 0 and read_int(a.sizes + 8 * (turn - 1)) < a.tail:
                turn -= 1
                row -= read_int(a.sizes + 8 * turn)
        for unit in range(thread, a.D * a.slices, threads):
            low = unit % a.slices
            high = a.B
            if a.every == 1:
                low *= a.slice_rows
                high = least(a.B, low + a.slice_rows)
            d = unit // a.slices
            recur(arguments, d, 0, vectors, low, high, a.every, 0, turn, a.N * d, a.hoist, 0, 1)
        if turn < a.T and threads > 1:
            meet(a.sync, 3 * threads if a.hoist != 0 else 2 * threads)
            first, last = vectors * thread // threads, vectors * (thread + 1) // threads
            recur(
                *(arguments, 0, first, last, 0, a.B, 1, turn, a.T, row, a.hoist),
                *(a.sync + 64, threads),
            )

    tools.units.add(forward)


def _add_pack(tools: Toolbox) -> Any:
    """Pack W_ih and W_hh, one after the other in each column vector."""
    unpack, least = memory.unpack_arguments(ForwardArguments), memory.least()
    transpose = memory.transpose(tools.lanes)
    lanes, vector_bytes, size = tools.lanes.count, tools.lanes.vector_bytes, tools.lanes.itemsize

    def pack(arguments: int, d: int, first: int, last: int) -> None:
        a = unpack(arguments)
        base = a.scratch + d * a.packed
        w_ih, w_hh = (a.w_ih_0, a.w_hh_0) if d == 0 else (a.w_ih_1, a.w_hh_1)
        for v in range(first, last):
            count = least(lanes, a.H - v * lanes)
            for part in range(2):
                w, columns, to = w_ih, a.I, base + v * a.packed_row
                if part == 1:
                    w, columns, to = w_hh, a.H, to + a.packed_inputs
                for k in range(0, columns, lanes):
                    source = w + (v * lanes * columns + k) * size
                    block = to + k * vector_bytes
                    transpose(block, source, columns * size, count, columns - k)

    return tools.units.add(pack)


def _add_pack_bias(tools: Toolbox) -> Any:
    """Write b_ih + b_hh, or zeros, behind the packed weights."""
    unpack, least = memory.unpack_arguments(ForwardArguments), memory.least()
    copy, add = memory.copy(tools.lanes), memory.add(tools.lanes)
    lanes, vector_bytes = tools.lanes.count, tools.lanes.vector_bytes

    def pack_bias(arguments: int, d: int, first: int, last: int) -> None:
        a = unpack(arguments)
        bias = a.scratch + d * a.packed + (a.H + lanes - 1) // lanes * a.packed_row
        b_ih, b_hh = (a.b_ih_0, a.b_hh_0) if d == 0 else (a.b_ih_1, a.b_hh_1)
        for v in range(first, last):
            at = v * vector_bytes
            if b_ih != 0:
                add(bias + at, b_ih + at, b_hh + at, least(lanes, a.H - v * lanes))
            else:
                copy(bias + at, 0, 0, lanes)

    return tools.units.add(pack_bias)


def _add_project(tools: Toolbox, common: Common) -> Any:
    """Write the input's share of the pre-activations of rows `start` to `stop` into y."""
    unpack, affine = memory.unpack_arguments(ForwardArguments), common.affine
    lanes, size, least = tools.lanes.count, tools.lanes.itemsize, memory.least()

    def project(arguments: int, d: int, first: int, last: int, start: int, stop: int) -> None:
        a = unpack(arguments)
        base = a.scratch + d * a.packed
        bias = base + (a.H + lanes - 1) // lanes * a.packed_row
        ld_x, ld_y = a.I * size, a.D * a.H * size
        for row in range(start, stop, ROW_BLOCK):
            rows = least(ROW_BLOCK, stop - row)
            x, y = a.x + row * ld_x, a.y + row * ld_y + d * a.H * size
            affine(
                *(bias, 0, x, ld_x, a.I, base, 0, 0, 0, base, a.packed_row),
                *(y, ld_y, rows, first, last, a.H, NOTHING, 0, 0, 0, 0),
            )

    return tools.units.add(project)


def _add_recur(tools: Toolbox, common: Common) -> Any:
    """The time loop over batch rows `low`, `low + every`, ... below `high`.

    It takes direction 0 from step `start` to `stop`, and direction 1 through all steps, which these
    then are. `row` is the first row of the steps, or the one behind the last for direction 1.
    `hoisted` says whether y holds the input's share already. With `parts` threads on the same rows,
    `counter` is where they meet after each step.
    """
    unpack, least, onward = (
        memory.unpack_arguments(ForwardArguments),
        memory.least(),
        memory.onward(),
    )
    read_int, meet = memory.read_int(), memory.arrive_and_wait()
    step, copy_rows = _add_step(tools, common), common.copy_rows
    size = tools.lanes.itemsize

    def recur(
        arguments: int,
        d: int,
        first: int,
        last: int,
        low: int,
        high: int,
        every: int,
        start: int,
        stop: int,
        row: int,
        hoisted: int,
        counter: int,
        parts: int,
    ) -> None:
        a = unpack(arguments)
        ld, ld_y = a.H * size, a.D * a.H * size
        y, h0, h_n = a.y + d * ld, a.h0 + d * a.B * ld, a.h_n + d * a.B * ld
        row_before, size_before = 0, 0
        if start > 0:
            size_before = a.B if a.sizes == 0 else read_int(a.sizes + 8 * (start - 1))
            row_before = row - size_before
        for s in range(start, stop):
            t = s if d == 0 else a.T - 1 - s
            now = a.B if a.sizes == 0 else read_int(a.sizes + 8 * t)
            if d != 0:
                row -= now
            top = least(high, now)
            fresh = onward(low, every, least(top, size_before))
            if fresh > low:
                h, rows = y + (row_before + low) * ld_y, (fresh - low) // every
                step(arguments, d, first, last, hoisted, every, row + low, rows, h, ld_y * every)
            if top > fresh:
                h, rows = h0 + fresh * ld, (top - fresh + every - 1) // every
                step(arguments, d, first, last, hoisted, every, row + fresh, rows, h, ld * every)
            following = 0
            if d == 0 and s + 1 < a.T:
                following = a.B if a.sizes == 0 else read_int(a.sizes + 8 * (t + 1))
            if d == 0 or t == 0:
                ended = onward(low, every, following)
                rows = (top - ended + every - 1) // every
                to, source = h_n + ended * ld, y + (row + ended) * ld_y
                copy_rows(to, ld * every, source, ld_y * every, rows, first, last, a.H)
            row_before, size_before = row, now
            if d == 0:
                row += now
            if parts > 1:
                meet(counter, (s + 1 - start) * parts)

    return tools.units.add(recur)


def _add_step(tools: Toolbox, common: Common) -> Any:
    """One time step of `rows` rows from `row` on, `every` apart; their states before it at `h`."""
    unpack, affine = memory.unpack_arguments(ForwardArguments), common.affine
    step_direct = _add_step_direct(tools)
    lanes, size = tools.lanes.count, tools.lanes.itemsize

    def step(
        arguments: int,
        d: int,
        first: int,
        last: int,
        hoisted: int,
        every: int,
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
        ld_x, ld_y = ld_x * every, ld_y * every
        init, ld_init, inputs = base + (a.H + lanes - 1) // lanes * a.packed_row, 0, a.I
        if hoisted != 0:
            init, ld_init, inputs = y, ld_y, 0
        affine(
            *(init, ld_init, x, ld_x, inputs, base),
            *(h, ld_h, a.H, base + a.packed_inputs, a.packed_row),
            *(y, ld_y, rows, first, last, a.H, ACTIVATE, a.cell, 0, 0, 0),
        )

    return tools.units.add(step)


def _add_step_direct(tools: Toolbox) -> Any:
    """One time step of `rows` rows at `x`, whose weights are read as they lie."""
    unpack, least = memory.unpack_arguments(ForwardArguments), memory.least()
    tile, activate = direct(tools.lanes), pointwise.activate(tools.lanes)
    lanes, vector_bytes, size = tools.lanes.count, tools.lanes.vector_bytes, tools.lanes.itemsize

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
            count = least(lanes, a.H - v * lanes)
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
                    activate(a.cell, out + r * ld_y, count)
                done += some

    return tools.units.add(step_direct)

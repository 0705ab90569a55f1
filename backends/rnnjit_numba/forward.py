"""The forward kernel: a whole sequence of one layer, all directions, in one call.

    h_t = activation(W_ih x_t + b_ih + b_hh + W_hh h_{t-1})

The batch is cut into slices whose rows never meet, so that threads run the whole time loop without
waiting for each other. Where there are too few rows for that, threads share the hidden columns of a
slice (`parts`) and meet after each step; so they do at the end of a packed batch, where few
sequences go on (`tail`). No thread waits for one that has not begun (see `sharing`). Weights are
packed once per call into column vectors `[V][K][lanes]`, from which the register tiles stream. No
plan changes any bit of a result.

Each function takes the address of a `ForwardArguments` first, then direction `d`, and column
vectors `first` to `last` of the hidden features.
"""

from __future__ import annotations

from typing import Any

from rnnjit_numba import memory, pointwise
from rnnjit_numba.arguments import LINE, ForwardArguments
from rnnjit_numba.direct import DIRECT_ROWS, direct
from rnnjit_numba.preparation import add_preparation
from rnnjit_numba.toolbox import ACTIVATE, Common, Toolbox


def add_forward(tools: Toolbox, common: Common) -> None:
    """Add the kernel `forward(arguments, thread, threads)`, which each thread calls."""
    unpack, next_share = memory.unpack_arguments(ForwardArguments), common.next_share
    read_int = memory.read_int()
    pack, pack_bias, project, prepare = add_preparation(tools, common)
    recur = _add_recur(tools, common, prepare)
    by_columns, slices = _add_by_columns(tools, common, recur), _add_slices(tools, recur)
    lanes = tools.lanes.count

    def forward(arguments: int, thread: int, threads: int) -> None:
        a = unpack(arguments)
        if a.parts > 1 or a.direct != 0:
            by_columns(arguments, thread, threads)
            return
        vectors, phase = (a.H + lanes - 1) // lanes, 0
        share = next_share(a.sync, thread, threads, phase, -1, 0)
        while share >= 0:
            for unit in range(share, a.D * vectors, threads):
                pack_bias(arguments, unit // vectors, unit % vectors, unit % vectors + 1)
                pack(arguments, unit // vectors, unit % vectors, unit % vectors + 1)
            share = next_share(a.sync, thread, threads, phase, share, 0)
        if a.hoist != 0:
            phase += 1
            share = next_share(a.sync, thread, threads, phase, -1, 0)
            while share >= 0:
                start, stop = a.N * share // threads, a.N * (share + 1) // threads
                for d in range(a.D):
                    project(arguments, d, 0, vectors, start, stop)
                share = next_share(a.sync, thread, threads, phase, share, 0)
        turn, row = a.T, a.N
        if a.tail > 0 and threads > 1:
            while turn > 0 and read_int(a.sizes + 8 * (turn - 1)) < a.tail:
                turn -= 1
                row -= read_int(a.sizes + 8 * turn)
        last = 1 if turn == a.T else 0
        phase += 1
        share = next_share(a.sync, thread, threads, phase, -1, last)
        while share >= 0:
            slices(arguments, share, threads, turn)
            share = next_share(a.sync, thread, threads, phase, share, last)
        if last == 0:
            area = a.sync + LINE * (1 + threads)
            recur(arguments, 0, 0, a.B, 1, turn, a.T, row, a.hoist, 0, area, thread, threads)

    tools.units.add(forward)


def _add_by_columns(tools: Toolbox, common: Common, recur: Any) -> Any:
    """The whole of a call whose threads share hidden columns, or whose weights are not packed."""
    unpack, next_share = memory.unpack_arguments(ForwardArguments), common.next_share

    def by_columns(arguments: int, thread: int, threads: int) -> None:
        a = unpack(arguments)
        parts = a.parts if threads > 1 and threads >= a.parts else 1
        groups, size = threads // parts, LINE * (1 + threads)
        share = next_share(a.sync, thread, threads, 0, -1, 1) if groups > 1 else thread
        while share >= 0:
            if share // parts < groups:
                for d in range(share // parts, a.D, groups):
                    area = a.sync + size * (1 + d)
                    recur(
                        *(arguments, d, 0, a.B, 1, 0, a.T, a.N * d, 1 - a.direct, 1),
                        *(area, share % parts, parts),
                    )
            share = next_share(a.sync, thread, threads, 0, share, 1) if groups > 1 else -1

    return tools.units.add(by_columns)


def _add_slices(tools: Toolbox, recur: Any) -> Any:
    """A share of the slices, from the first step to step `stop`."""
    unpack, least = memory.unpack_arguments(ForwardArguments), memory.least()

    def slices(arguments: int, share: int, shares: int, stop: int) -> None:
        a = unpack(arguments)
        for unit in range(share, a.D * a.slices, shares):
            low = unit % a.slices
            high = a.B
            if a.every == 1:
                low *= a.slice_rows
                high = least(a.B, low + a.slice_rows)
            d = unit // a.slices
            recur(arguments, d, low, high, a.every, 0, stop, a.N * d, a.hoist, 0, 0, 0, 1)

    return tools.units.add(slices)


def _add_recur(tools: Toolbox, common: Common, prepare: Any) -> Any:
    """The time loop over batch rows `low`, `low + every`, ... below `high`.

    It takes direction 0 from step `start` to `stop`, and direction 1 through all steps, which these
    then are. `row` is the first row of the steps, or the one behind the last for direction 1.
    `hoisted` says whether y holds the input's share already, and `unready` is 1 where weights
    are yet to be packed, and y to be filled so.

    With more `parts` than one, as many threads share the hidden columns, and each step is a phase
    (see `sharing`) of `area`; `own` is this thread's part.
    """
    unpack, least, onward = (
        memory.unpack_arguments(ForwardArguments),
        memory.least(),
        memory.onward(),
    )
    read_int, next_share = memory.read_int(), common.next_share
    step, copy_rows = _add_step(tools, common), common.copy_rows
    lanes, size = tools.lanes.count, tools.lanes.itemsize

    def recur(
        arguments: int,
        d: int,
        low: int,
        high: int,
        every: int,
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
            top = least(high, now)
            fresh = onward(low, every, least(top, size_before))
            following = 0
            if d == 0 and s + 1 < a.T:
                following = a.B if a.sizes == 0 else read_int(a.sizes + 8 * (t + 1))
            share = next_share(area, own, parts, s - start, -1, 0) if parts > 1 else 0
            while share >= 0:
                if share != part:
                    part = share
                    first, last = vectors * part // parts, vectors * (part + 1) // parts
                if unready != 0 and s == start:
                    prepare(arguments, d, first, last)
                if fresh > low:
                    h, rows = y + (row_before + low) * ld_y, (fresh - low) // every
                    step(
                        *(arguments, d, first, last, hoisted, every, row + low, rows),
                        *(h, ld_y * every),
                    )
                if top > fresh:
                    h, rows = h0 + fresh * ld, (top - fresh + every - 1) // every
                    step(
                        *(arguments, d, first, last, hoisted, every, row + fresh, rows),
                        *(h, ld * every),
                    )
                if d == 0 or t == 0:
                    ended = onward(low, every, following)
                    rows = (top - ended + every - 1) // every
                    to, source = h_n + ended * ld, y + (row + ended) * ld_y
                    copy_rows(to, ld * every, source, ld_y * every, rows, first, last, a.H)
                share = next_share(area, own, parts, s - start, share, 0) if parts > 1 else -1
            row_before, size_before = row, now
            if d == 0:
                row += now

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

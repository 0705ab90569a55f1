"""One step of the forward pass, for some rows and hidden units of a direction.

The functions `step` take the address of a `ForwardArguments`, the direction, a range of vectors of
the hidden units, whether the input projection was computed before (`hoisted`), then `rows` rows,
`stride` apart, the first of which is row `row` of all and `b` of the batch, the states before at
`h`, whether these are the initial ones (`fresh`), the address `zx` where the projection of row 0
would be, and the number `place` of the memory for pre-activations (see `ForwardArguments.z`).
"""

from __future__ import annotations

from typing import Any

from rnnjit_numba import cell_step, memory, pointwise
from rnnjit_numba.arguments import ForwardArguments
from rnnjit_numba.context import NOTHING, STEP, CodegenContext, CommonFunctions
from rnnjit_numba.direct import DIRECT_ROWS, direct
from rnnjit_numba.preparation import Preparation

#: Bytes of pre-activations that a step computes before it applies the cell to them: they stay in a
#: core's first-level cache, beside the weights that stream through it. Of four gates and vectors of
#: 32 bytes they are those of `Z_ROWS` rows and two vectors, since the cell takes these by twos.
_BLOCK_BYTES = 18432


def add_step(context: CodegenContext, common: CommonFunctions, preparation: Preparation) -> Any:
    """The function of a step."""
    if context.in_place:
        return _add_step_in_place(context, common)
    gates = _add_gates(context, common)
    project_out = _add_project_out(context, common, preparation)
    return add_any_step(context, gates, project_out)


def _add_step_in_place(context: CodegenContext, common: CommonFunctions) -> Any:
    """The step of nn.RNN's cell: the pre-activations are computed in y, and replaced there."""
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
        b: int,
        fresh: int,
        zx: int,
        place: int,
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
    """The step of nn.RNN's cell for `rows` rows at `x`, with weights read in place."""
    unpack, minimum = memory.unpack_arguments(ForwardArguments), memory.minimum()
    tile = direct(context.storage)
    step = pointwise.step(context.lanes, context.cell, in_place=True)
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


def add_any_step(context: CodegenContext, gates: Any, project_out: Any) -> Any:
    """The step of any cell: a block of rows and hidden units at a time."""
    unpack, minimum, maximum = (
        memory.unpack_arguments(ForwardArguments),
        memory.minimum(),
        memory.maximum(),
    )
    apply_cell = cell_step.step(context.storage, context.cell)
    lanes, size = context.lanes.count, context.storage.itemsize
    vector_bytes, stored_bytes = context.lanes.vector_bytes, context.storage.vector_bytes
    G, parts = context.layout.gates, 1 + int(context.layout.apart)
    row_bytes = G * vector_bytes

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
        b: int,
        fresh: int,
        zx: int,
        place: int,
    ) -> None:
        a = unpack(arguments)
        vectors = (a.H + lanes - 1) // lanes
        ld_z, local = vectors * row_bytes, a.scratch + a.z + place * a.z_size
        zh = local + (parts - 1) * a.z_rows * ld_z
        for done in range(0, rows, a.z_rows):
            n = minimum(a.z_rows, rows - done)
            row_now, b_now, h_now = row + done * stride, b + done * stride, h + done * ld_h
            z, ld = local, ld_z
            if hoisted != 0:
                z, ld = zx + row_now * ld_z, ld_z * stride
            out, ld_out = a.y + (row_now * a.D + d) * a.P * size, a.D * a.P * size * stride
            if a.P != a.H:
                out, ld_out = local + parts * a.z_rows * ld_z, vectors * stored_bytes
                if a.outputs != 0:
                    out = a.outputs + (row_now * a.D + d) * a.H * size
                    ld_out = a.D * a.H * size * stride
            # As many units as fit, whose vectors fill the widest tiles.
            whole = 1
            while whole * G % (a.tile & 15) != 0:
                whole += 1
            some = maximum(1, _BLOCK_BYTES // (n * row_bytes * whole)) * whole
            for low in range(first, last, some):
                high = minimum(last, low + some)
                gates(
                    *(arguments, d, low, high, hoisted, stride, row_now, n),
                    *(h_now, ld_h, z, ld, zh, place),
                )
                apply_cell(
                    *(arguments, d, row_now, b_now, stride, n, low, high),
                    *(z, ld, zh, ld_z, h_now, ld_h, fresh, out, ld_out),
                )
            if a.P != a.H:
                block = local + a.z_rows * (parts * ld_z + vectors * stored_bytes)
                project_out(arguments, d, stride, row_now, n, out, ld_out, block, place)

    return context.symbols.add(step)


def _add_gates(context: CodegenContext, common: CommonFunctions) -> Any:
    """The pre-activations of `rows` rows, in `z` and, where zh is used apart, in `zh`."""
    unpack, affine = memory.unpack_arguments(ForwardArguments), common.affine
    gates_direct = _add_gates_direct(context)
    lanes, size = context.lanes.count, context.storage.itemsize
    vector_bytes, G = context.lanes.vector_bytes, context.layout.gates
    apart, has_product = int(context.layout.apart), context.product
    row_inputs = context.row_inputs

    def gates(
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
        z: int,
        ld: int,
        zh: int,
        place: int,
    ) -> None:
        a = unpack(arguments)
        if a.direct != 0:
            gates_direct(arguments, d, first, last, row, rows, h, ld_h, z, zh)
            return
        base, vectors = a.scratch + d * a.packed, (a.H + lanes - 1) // lanes * G
        bias, w_hh, ld_z = (
            base + vectors * a.packed_row,
            base + a.packed_inputs,
            vectors * vector_bytes,
        )
        features = a.I + row_inputs * a.D * a.H
        x, ld_x = a.x + row * features * size, features * size * stride
        columns = vectors * lanes
        if apart != 0:
            if hoisted == 0:
                affine(
                    *(bias, 0, x, ld_x, a.I, base, 0, 0, 0, base, a.packed_row),
                    *(z, ld, rows, first * G, last * G, columns, NOTHING, a.tile),
                )
            affine(
                *(bias + ld_z, 0, h, ld_h, a.P, w_hh, 0, 0, 0, base, a.packed_row),
                *(zh, ld_z, rows, first * G, last * G, columns, NOTHING, a.tile),
            )
            return
        init, ld_init, inputs = bias, 0, a.I
        if hoisted != 0:
            init, ld_init, inputs = z, ld, 0
            if has_product == 0:
                return
        affine(
            *(init, ld_init, x, ld_x, inputs, base),
            *(h, ld_h, a.P * has_product, w_hh, a.packed_row),
            *(z, ld, rows, first * G, last * G, columns, NOTHING, a.tile),
        )

    return context.symbols.add(gates)


def _add_gates_direct(context: CodegenContext) -> Any:
    """As `gates`, with weights read in place; the rows are adjacent."""
    unpack, minimum = memory.unpack_arguments(ForwardArguments), memory.minimum()
    tile, size = direct(context.storage), context.storage.itemsize
    lanes, vector_bytes = context.lanes.count, context.lanes.vector_bytes
    G, apart = context.layout.gates, int(context.layout.apart)
    has_product, row_inputs = context.product, context.row_inputs

    def gates_direct(
        arguments: int,
        d: int,
        first: int,
        last: int,
        row: int,
        rows: int,
        h: int,
        ld_h: int,
        z: int,
        zh: int,
    ) -> None:
        a = unpack(arguments)
        w_ih, w_hh = (a.w_ih_0, a.w_hh_0) if d == 0 else (a.w_ih_1, a.w_hh_1)
        bias, ld_z = a.scratch + d * a.packed, (a.H + lanes - 1) // lanes * G * vector_bytes
        operand, features = a.P * has_product, a.I + row_inputs * a.D * a.H
        ld_x, ld_w_x, ld_w = features * size, a.I * size, operand * size
        x = a.x + row * features * size
        for v in range(first * G, last * G):
            unit, at = v // G * lanes, v * vector_bytes
            first_row, count = v % G * a.H + unit, minimum(lanes, a.H - unit)
            w_x, w_h = w_ih + first_row * ld_w_x, w_hh + first_row * ld_w
            done = 0
            while done < rows:
                some = 0
                for n in DIRECT_ROWS:
                    if some == 0 and rows - done >= n:
                        some = n
                to = done * ld_z + at
                x_now, h_now = x + done * ld_x, h + done * ld_h
                if apart != 0:
                    tile(
                        *(some, bias + at, 0, x_now, ld_x, a.I, w_x, ld_w_x),
                        *(h_now, ld_h, 0, w_h, ld_w, z + to, ld_z * 256 + count),
                    )
                    tile(
                        *(some, bias + ld_z + at, 0, h_now, ld_h, operand, w_h, ld_w),
                        *(h_now, ld_h, 0, w_h, ld_w, zh + to, ld_z * 256 + count),
                    )
                else:
                    tile(
                        *(some, bias + at, 0, x_now, ld_x, a.I, w_x, ld_w_x),
                        *(h_now, ld_h, operand, w_h, ld_w, z + to, ld_z * 256 + count),
                    )
                done += some

    return context.symbols.add(gates_direct)


def _add_project_out(
    context: CodegenContext, common: CommonFunctions, preparation: Preparation
) -> Any:
    """H = W_hr out for `rows` rows, `stride` apart, from row `row` on; `out` has their outputs.

    Where y is not stored as it is computed, `block` is memory for these rows of it.
    """
    unpack, minimum = memory.unpack_arguments(ForwardArguments), memory.minimum()
    affine, projection_at = common.affine, preparation.projection_at
    tile, size, store_rows = direct(context.storage), context.storage.itemsize, common.store_rows
    lanes, vector_bytes = context.lanes.count, context.lanes.vector_bytes
    apart = int(context.storage != context.computed)

    def project_out(
        arguments: int,
        d: int,
        stride: int,
        row: int,
        rows: int,
        out: int,
        ld_out: int,
        block: int,
        place: int,
    ) -> None:
        a = unpack(arguments)
        to, ld_to = a.y + (row * a.D + d) * a.P * size, a.D * a.P * size * stride
        weights, projected = projection_at(arguments, d), (a.P + lanes - 1) // lanes
        y, ld_y = to, ld_to
        if apart != 0:
            y, ld_y = block, projected * vector_bytes
        zeros = weights + projected * a.packed_out
        if a.direct == 0:
            affine(
                *(zeros, 0, out, ld_out, a.H, weights, 0, 0, 0, weights, a.packed_out),
                *(y, ld_y, rows, 0, projected, a.P, NOTHING, a.tile),
            )
        w_hr = a.w_hr_0 if d == 0 else a.w_hr_1
        for v in range(projected if a.direct != 0 else 0):
            count, w = minimum(lanes, a.P - v * lanes), w_hr + v * lanes * a.H * size
            done = 0
            while done < rows:
                some = 0
                for n in DIRECT_ROWS:
                    if some == 0 and rows - done >= n:
                        some = n
                place = y + done * ld_y + v * vector_bytes
                tile(
                    *(some, zeros, 0, out + done * ld_out, ld_out, a.H, w, a.H * size),
                    *(out, ld_out, 0, w, a.H * size, place, ld_y * 256 + count),
                )
                done += some
        if apart != 0:
            store_rows(to, ld_to, y, ld_y, rows, 0, projected, a.P)

    return context.symbols.add(project_out)

"""One step of the backward pass: dz, and the gradients of the states before, of some rows."""

from __future__ import annotations

from typing import Any

from rnnjit.codegen.plan import ROW_BLOCK
from rnnjit_numba import memory
from rnnjit_numba.arguments import BackwardArguments
from rnnjit_numba.cell_step_backward import step_backward
from rnnjit_numba.context import NOTHING, CodegenContext, CommonFunctions


def add_step(context: CodegenContext, common: CommonFunctions) -> Any:
    """The function that computes dz of `rows` rows, `stride` apart, and passes gradients on.

    The first of them is row `row` of all and `b` of the batch; `before` is the row of the step
    before that precedes it, unless the states before are the initial ones (`fresh`). `place`
    numbers the memory for gradients before the projection.
    """
    unpack, minimum = memory.unpack_arguments(BackwardArguments), memory.minimum()
    derive = step_backward(context.storage, context.cell, rows=context.storage)
    projected = _add_projected(context, common)
    lanes, size = context.lanes.count, context.storage.itemsize
    # Rows without a gap are one long row, if every tensor of the step has one block of columns.
    cell = context.cell
    single = int(len(cell.accumulators) == 1 and len(cell.saved) < 2)
    if cell.parameters or cell.row_inputs:
        single = 0

    def step_back(
        arguments: int,
        d: int,
        first: int,
        last: int,
        stride: int,
        row: int,
        b: int,
        rows: int,
        before: int,
        fresh: int,
        place: int,
    ) -> None:
        a = unpack(arguments)
        if a.P != a.H:
            projected(arguments, d, stride, row, b, rows, before, fresh, place)
            return
        columns, ld = a.H, a.D * a.H * size * stride
        if single != 0 and a.D == 1 and stride == 1 and first == 0 and last * lanes >= columns:
            columns, rows = rows * columns, minimum(rows, 1)
            last = (columns + lanes - 1) // lanes
        grad_out = a.grad_y + (row * a.D + d) * a.H * size if a.grad_y != 0 else 0
        derive(
            *(arguments, d, row, b, stride, rows, first, last, columns),
            *(before, fresh, grad_out, ld),
        )

    return context.symbols.add(step_back)


def _add_projected(context: CodegenContext, common: CommonFunctions) -> Any:
    """A step of a layer with a projection: the gradient of h first, which dW_hr needs as well.

    It is stored behind dz of each row. That of the output before the projection follows from it, in
    blocks of rows.
    """
    unpack, minimum = memory.unpack_arguments(BackwardArguments), memory.minimum()
    storage, computed = context.storage, context.computed
    derive = step_backward(storage, context.cell, rows=computed)
    add, affine, product = memory.add(computed, storage, storage), common.affine, common.product
    lanes, size, vector_bytes = context.lanes.count, storage.itemsize, context.lanes.vector_bytes
    stored_bytes, computed_size = storage.vector_bytes, computed.itemsize

    def projected(
        arguments: int,
        d: int,
        stride: int,
        row: int,
        b: int,
        rows: int,
        before: int,
        fresh: int,
        place: int,
    ) -> None:
        a = unpack(arguments)
        wide_p, wide_i, wide_h = (
            (a.P + lanes - 1) // lanes,
            (a.I + lanes - 1) // lanes,
            (a.H + lanes - 1) // lanes,
        )
        w_hr = a.scratch + d * a.packed + (wide_p + wide_i) * a.packed_column
        zeros, ld_out = w_hr + wide_h * a.packed_out, wide_h * vector_bytes
        wide, behind = a.dz_columns * size, (a.dz_columns - a.P) * size
        out = a.scratch + a.grad_out + place * a.grad_out_size
        own = a.grad_h0 if a.grad_h0 != 0 else a.scratch + a.grad_h
        for done in range(0, rows, ROW_BLOCK):
            n, r = minimum(ROW_BLOCK, rows - done), done * stride
            grad = a.dz + (d * a.N + row + r) * wide + behind
            for i in range(n):
                given = a.grad_y + ((row + r + i * stride) * a.D + d) * a.P * size
                source = own + (d * a.B + b + r + i * stride) * a.P * computed_size
                for v in range(wide_p):
                    at, count = v * stored_bytes, minimum(lanes, a.P - v * lanes)
                    other = given + at if a.grad_y != 0 else 0
                    place = source + v * vector_bytes
                    add(grad + i * stride * wide + at, place, other, count)
            if a.direct != 0:
                weights = a.w_hr_0 if d == 0 else a.w_hr_1
                product(zeros, 0, grad, wide, a.P, weights, a.H, out, ld_out, n, 0, wide_h)
            else:
                affine(
                    *(zeros, 0, 0, 0, 0, w_hr, grad, wide * stride, a.P, w_hr, a.packed_out),
                    *(out, ld_out, n, 0, wide_h, a.H, NOTHING, a.tile),
                )
            derive(
                *(arguments, d, row + r, b + r, stride, n, 0, wide_h, a.H),
                *(before + r, fresh, out, ld_out),
            )

    return context.symbols.add(projected)

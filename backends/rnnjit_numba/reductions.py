"""The gradients that are one reduction each over all rows: grad_x, dW_ih, dW_hh and db.

    dW_ih = sum_n dz_n x_n^T      dW_hh = sum_n dz_n h'_n^T      db = sum_n dz_n
    grad_x_n = sum over directions of W_ih^T dz_n

h'_n is the state before row n's step. Rows are summed in blocks of `REDUCTION_ROWS`, whose bounds
depend on N alone. Each block is packed so that the outer-product tile streams through it. The sums
of the blocks are added from the last to the first, the order in which dz is computed. Tasks divide
the columns of the results, never the rows, so the sums do not depend on the number of threads.

The first argument of each function is the address of a `BackwardArguments`, which has the shapes.
"""

from __future__ import annotations

from typing import Any

from rnnjit_numba import memory
from rnnjit_numba.arguments import BackwardArguments
from rnnjit_numba.context import NOTHING, CodegenContext, CommonFunctions
from rnnjit_numba.plan import REDUCTION_ROWS, ROW_BLOCK


def add_reduce(context: CodegenContext, common: CommonFunctions) -> Any:
    """A task's part of grad_x and of the sums over rows.

    It computes grad_x of rows `low` to `high`, and sums blocks `first` to `last`, each of
    `REDUCTION_ROWS` rows.
    """
    unpack, minimum, maximum = (
        memory.unpack_arguments(BackwardArguments),
        memory.minimum(),
        memory.maximum(),
    )
    grad_x, block = _add_grad_x(context, common), _add_reduce_block(context)
    lanes = context.lanes.count

    def reduce(
        arguments: int, task: int, tasks: int, low: int, high: int, first: int, last: int
    ) -> None:
        a = unpack(arguments)
        if a.grad_x != 0:
            grad_x(arguments, task, tasks, low, high)
        wide_i = (a.I + lanes - 1) // lanes if a.grad_w_ih_0 != 0 else 0
        wide_h = (a.H + lanes - 1) // lanes if a.grad_w_hh_0 != 0 else 0
        widest = a.outer_vectors
        chunks_i = (wide_i + widest - 1) // widest
        chunks_h = (wide_h + widest - 1) // widest
        chunks = chunks_i + chunks_h + (1 if a.grad_b_0 != 0 else 0)
        total = a.D * chunks
        start, stop = total * task // tasks, total * (task + 1) // tasks
        for d in range(a.D):
            begin, end = maximum(0, start - d * chunks), minimum(chunks, stop - d * chunks)
            if end > begin:
                for index in range(last - 1, first - 1, -1):
                    row = index * REDUCTION_ROWS
                    rows = minimum(REDUCTION_ROWS, a.N - row)
                    block(arguments, task, d, begin, end, chunks_i, chunks_h, row, rows)

    return context.symbols.add(reduce)


def _add_grad_x(context: CodegenContext, common: CommonFunctions) -> Any:
    """A task's part of grad_x of rows `low` to `high`, in blocks that stay in a core's cache."""
    unpack, affine = memory.unpack_arguments(BackwardArguments), common.affine
    minimum = memory.minimum()
    lanes, size, product = context.lanes.count, context.lanes.itemsize, common.product

    def grad_x(arguments: int, task: int, tasks: int, low: int, high: int) -> None:
        a = unpack(arguments)
        ld, ld_x = a.H * size, a.I * size
        w_0 = a.scratch + (a.H + lanes - 1) // lanes * a.packed_column
        w_1 = w_0 + a.packed
        wide = (a.I + lanes - 1) // lanes
        zeros = w_0 + wide * a.packed_column
        hidden_1 = a.H if a.D == 2 else 0
        if a.direct != 0:
            first, last = wide * task // tasks, wide * (task + 1) // tasks
            to = a.grad_x
            product(zeros, 0, a.dz, ld, a.H, a.w_ih_0, a.I, to, ld_x, a.N, first, last)
            if a.D == 2:
                dz_1 = a.dz + a.N * ld
                product(to, ld_x, dz_1, ld, a.H, a.w_ih_1, a.I, to, ld_x, a.N, first, last)
            return
        blocks = (high - low + ROW_BLOCK - 1) // ROW_BLOCK
        for block in range(blocks * task // tasks, blocks * (task + 1) // tasks):
            row = low + block * ROW_BLOCK
            rows = minimum(ROW_BLOCK, high - row)
            dz_0 = a.dz + row * ld
            dz_1 = dz_0 + a.N * ld
            affine(
                *(zeros, 0, dz_0, ld, a.H, w_0, dz_1, ld, hidden_1, w_1, a.packed_column),
                *(a.grad_x + row * ld_x, ld_x, rows, 0, wide, a.I, NOTHING, a.tile),
            )

    return context.symbols.add(grad_x)


def _add_reduce_block(context: CodegenContext) -> Any:
    """Add `rows` rows from `row` on to the results' chunks `first` to `last`.

    Chunks are column blocks no wider than a tile: those of dW_ih, then those of dW_hh, then db.
    """
    unpack, minimum = memory.unpack_arguments(BackwardArguments), memory.minimum()
    pack_dz, product = _add_pack_dz(context), _add_product(context)
    sums = _add_sums(context)
    vector_bytes, size = context.lanes.vector_bytes, context.lanes.itemsize

    def reduce_block(
        arguments: int,
        task: int,
        d: int,
        first: int,
        last: int,
        chunks_i: int,
        chunks_h: int,
        row: int,
        rows: int,
    ) -> None:
        a = unpack(arguments)
        groups = (a.H + a.outer_rows - 1) // a.outer_rows
        dz_block = a.reduction + task * a.reduction_size
        operand = dz_block + groups * a.outer_rows * REDUCTION_ROWS * size
        result = operand + REDUCTION_ROWS * a.outer_vectors * vector_bytes
        keep, matrices = a.N - row - rows, minimum(last, chunks_i + chunks_h)
        if first < matrices:
            pack_dz(arguments, d, dz_block, row, rows)
        # Of fewer rows, the memory of an operand holds more chunks. Those that are packed together
        # are written row by row of the result, and so in long runs where there is little to sum.
        chunk, some = first, REDUCTION_ROWS // rows
        while chunk < matrices:
            states = 1 if chunk >= chunks_i else 0
            start, chunks = (chunks_i, chunks_h) if states != 0 else (0, chunks_i)
            end = minimum(minimum(chunk + some, matrices), start + chunks)
            product(
                *(arguments, d, states, chunk - start, end - start, chunks),
                *(dz_block, operand, row, rows, keep),
            )
            chunk = end
        if last > chunks_i + chunks_h:
            sums(arguments, d, result, row, rows, keep)

    return context.symbols.add(reduce_block)


def _add_pack_dz(context: CodegenContext) -> Any:
    """Pack a block of dz as `[groups][REDUCTION_ROWS][outer_rows]`, zeros after the last column."""
    unpack, minimum, maximum = (
        memory.unpack_arguments(BackwardArguments),
        memory.minimum(),
        memory.maximum(),
    )
    lanes, size, copy = context.lanes.count, context.lanes.itemsize, memory.copy(context.lanes)

    def pack_dz(arguments: int, d: int, to: int, row: int, rows: int) -> None:
        a = unpack(arguments)
        tile_rows = a.outer_rows
        source = a.dz + (d * a.N + row) * a.H * size
        for group in range((a.H + tile_rows - 1) // tile_rows):
            for first in range(0, tile_rows, lanes):
                piece, j = minimum(lanes, tile_rows - first), group * tile_rows + first
                count = maximum(0, minimum(piece, a.H - j))
                place = to + (group * tile_rows * REDUCTION_ROWS + first) * size
                for n in range(rows):
                    at = source + (n * a.H + j) * size
                    copy(place + n * tile_rows * size, at, count, piece)

    return context.symbols.add(pack_dz)


def _add_pack_operand(context: CodegenContext) -> Any:
    """Pack `width` column vectors from `v` on of a block of x, or of the states before each row.

    The layout is `[REDUCTION_ROWS][width][lanes]`; `states` chooses the states.
    """
    unpack, copy = memory.unpack_arguments(BackwardArguments), memory.copy(context.lanes)
    read_int, minimum = memory.read_int(), memory.minimum()
    lanes, vector_bytes, size = (
        context.lanes.count,
        context.lanes.vector_bytes,
        context.lanes.itemsize,
    )

    def pack_operand(
        arguments: int, d: int, to: int, states: int, v: int, width: int, row: int, rows: int
    ) -> None:
        a = unpack(arguments)
        columns = a.H if states != 0 else a.I
        for n in range(rows):
            source = a.x + (row + n) * a.I * size
            if states != 0:
                source = read_int(a.before + 8 * (d * a.N + row + n))
            for i in range(width):
                count = minimum(lanes, columns - (v + i) * lanes)
                at = to + (n * width + i) * vector_bytes
                copy(at, source + (v + i) * vector_bytes, count, lanes)

    return context.symbols.add(pack_operand)


def _add_product(context: CodegenContext) -> Any:
    """Add the product of a packed block of dz and an operand to chunks `first` to `last` of dW.

    dW is dW_hh if `states` is 1, else dW_ih; it has `chunks` chunks. Their operands are packed one
    after the other at `operand`. With `keep` 0 the product overwrites dW.
    """
    unpack, minimum = memory.unpack_arguments(BackwardArguments), memory.minimum()
    outer, pack_operand = context.tiles.outer(), _add_pack_operand(context)
    lanes, size = context.lanes.count, context.lanes.itemsize
    vector_bytes = context.lanes.vector_bytes

    def product(
        arguments: int,
        d: int,
        states: int,
        first: int,
        last: int,
        chunks: int,
        dz_block: int,
        operand: int,
        row: int,
        rows: int,
        keep: int,
    ) -> None:
        a = unpack(arguments)
        tile_rows, columns = a.outer_rows, a.I
        to = a.grad_w_ih_0 if d == 0 else a.grad_w_ih_1
        if states != 0:
            columns = a.H
            to = a.grad_w_hh_0 if d == 0 else a.grad_w_hh_1
        wide, packed = (columns + lanes - 1) // lanes, rows * a.outer_vectors * vector_bytes
        for chunk in range(first, last):
            v, end = wide * chunk // chunks, wide * (chunk + 1) // chunks
            at = operand + (chunk - first) * packed
            pack_operand(arguments, d, at, states, v, end - v, row, rows)
        for group in range((a.H + tile_rows - 1) // tile_rows):
            dz = dz_block + group * tile_rows * REDUCTION_ROWS * size
            block = to + group * tile_rows * columns * size
            existing = 256 * minimum(tile_rows, a.H - group * tile_rows)
            for chunk in range(first, last):
                v, end = wide * chunk // chunks, wide * (chunk + 1) // chunks
                outer(
                    *(16 * tile_rows + end - v, dz, operand + (chunk - first) * packed, rows),
                    *(block + v * vector_bytes, columns * size),
                    *(existing + minimum(lanes, columns - (end - 1) * lanes), keep),
                )

    return context.symbols.add(product)


def _add_sums(context: CodegenContext) -> Any:
    """Add the column sums of a block of dz to db; `result` is memory for one vector.

    With `keep` 0 they overwrite db.
    """
    unpack, minimum = memory.unpack_arguments(BackwardArguments), memory.minimum()
    column_sum, add, copy = (
        memory.column_sum(context.lanes),
        memory.add(context.lanes),
        memory.copy(context.lanes),
    )
    lanes, vector_bytes, size = (
        context.lanes.count,
        context.lanes.vector_bytes,
        context.lanes.itemsize,
    )

    def sums(arguments: int, d: int, result: int, row: int, rows: int, keep: int) -> None:
        a = unpack(arguments)
        dz = a.dz + (d * a.N + row) * a.H * size
        grad_b = a.grad_b_0 if d == 0 else a.grad_b_1
        for v in range((a.H + lanes - 1) // lanes):
            at, count = v * vector_bytes, minimum(lanes, a.H - v * lanes)
            column_sum(result, dz + at, a.H * size, rows, count)
            if keep == 0:
                copy(grad_b + at, result, count, count)
            else:
                add(grad_b + at, grad_b + at, result, count)

    return context.symbols.add(sums)

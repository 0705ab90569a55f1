"""The gradients that are one reduction each over all rows: grad_x and those of the weights.

    dW_ih = sum_n dz_n x_n^T      dW_hh = sum_n dz_n h'_n^T      db = sum_n dz_n
    dW_hr = sum_n g_n out_n^T     grad_x_n = sum over directions of W_ih^T dz_n
    dp = sum_n dp_n for each parameter p of the cell

h'_n is the state before row n's step, g_n the gradient of h_n; of dz_n, W_ih and b_ih take the
blocks of zx, W_hh and b_hh those of zh; dp_n is one more block (see `cell_layout`). Rows are summed
in blocks of `REDUCTION_ROWS`, whose bounds depend on N alone. Each block is packed so that the
outer-product tile streams through it. The sums of the blocks are added from the last to the first,
the order in which dz is computed. Tasks divide the columns of the results, never the rows, so the
sums do not depend on the number of threads.

The first argument of each function is the address of a `BackwardArguments`, which has the shapes.
"""

from __future__ import annotations

from typing import Any

from rnnjit.codegen.plan import REDUCTION_ROWS, ROW_BLOCK, SEGMENT
from rnnjit_numba import memory
from rnnjit_numba.arguments import BackwardArguments, parameter_argument
from rnnjit_numba.context import NOTHING, CodegenContext, CommonFunctions

#: What a column block of a result is multiplied with: x, the states before, or the outputs.
_INPUTS, _STATES, _OUTPUTS = 0, 1, 2


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
    lanes, read_int = context.lanes.count, memory.read_int()
    parameters, _, places = _graded(context)

    def reduce(
        arguments: int, task: int, tasks: int, low: int, high: int, first: int, last: int
    ) -> None:
        a = unpack(arguments)
        if a.grad_x != 0:
            grad_x(arguments, task, tasks, low, high)
        wide_i = (a.I + lanes - 1) // lanes if a.grad_w_ih_0 != 0 else 0
        wide_p = (a.P + lanes - 1) // lanes if a.grad_w_hh_0 != 0 else 0
        wide_h = (a.H + lanes - 1) // lanes if a.grad_w_hr_0 != 0 else 0
        widest = a.outer_vectors
        chunks_i = (wide_i + widest - 1) // widest
        chunks_h = (wide_p + widest - 1) // widest
        chunks_o = (wide_h + widest - 1) // widest
        biases = 1 if a.grad_b_0 != 0 or a.grad_b_hh_0 != 0 else 0
        for i in range(parameters):
            if read_int(arguments + places[i]) != 0:
                biases = 1
        chunks = chunks_i + chunks_h + chunks_o + biases
        total = a.D * chunks
        start, stop = total * task // tasks, total * (task + 1) // tasks
        for d in range(a.D):
            begin, end = maximum(0, start - d * chunks), minimum(chunks, stop - d * chunks)
            if end > begin:
                for index in range(last - 1, first - 1, -1):
                    row = index * REDUCTION_ROWS
                    rows = minimum(REDUCTION_ROWS, a.N - row)
                    block(arguments, task, d, begin, end, chunks_i, chunks_h, chunks_o, row, rows)

    return context.symbols.add(reduce)


def _add_grad_x(context: CodegenContext, common: CommonFunctions) -> Any:
    """A task's part of grad_x of rows `low` to `high`, in blocks that stay in a core's cache.

    It writes the first I columns; the recurrence has written those of the row inputs.
    """
    unpack, affine = memory.unpack_arguments(BackwardArguments), common.affine
    minimum, product = memory.minimum(), common.product
    lanes, size = context.lanes.count, context.storage.itemsize
    vector_bytes, store_rows = context.lanes.vector_bytes, common.store_rows
    terms, term_bytes = context.storage.terms, context.storage.packed_bytes
    runs = [run for run in context.layout.runs if run.input_gate >= 0]
    count, firsts = len(runs), tuple(run.block for run in runs)
    blocks, gates = tuple(run.blocks for run in runs), tuple(run.input_gate for run in runs)
    has_product, row_inputs = context.product, context.row_inputs

    def grad_x(arguments: int, task: int, tasks: int, low: int, high: int) -> None:
        a = unpack(arguments)
        ld, ld_w = a.dz_columns * size, a.I * size
        ld_x = ld_w + row_inputs * a.D * a.H * size
        wide, wide_k, wide_h = (
            (a.I + lanes - 1) // lanes,
            (a.P * has_product + lanes - 1) // lanes,
            (a.H + lanes - 1) // lanes,
        )
        packed = a.scratch + wide_k * a.packed_column
        zeros = packed + wide * a.packed_column + wide_h * a.packed_out
        step, rows = ROW_BLOCK, high - low
        if a.direct != 0 and terms == 1:
            step = a.N
        tiles = (rows + step - 1) // step
        first, last = tiles * task // tasks, tiles * (task + 1) // tasks
        if a.direct != 0:
            first, last = 0, tiles
        for block in range(first, last):
            row = low + block * step
            n, to, ld_to = minimum(step, high - row), a.grad_x + row * ld_x, ld_x
            begin, end = 0, wide
            if a.direct != 0:
                begin, end = wide * task // tasks, wide * (task + 1) // tasks
            if terms > 1:
                # The memory of this task holds no packed block now.
                to, ld_to = a.reduction + task * a.reduction_size, wide * vector_bytes
            init, ld_init = zeros, 0
            for d in range(a.D):
                for i in range(count):
                    # An odd number of units makes each gate a sum of its own, see `pack_back`.
                    parts = blocks[i] if a.H % terms != 0 else 1
                    k = blocks[i] // parts * a.H
                    for part in range(parts):
                        gate = gates[i] + part
                        dz = a.dz + (d * a.N + row) * ld + (firsts[i] + part) * a.H * size
                        if a.direct != 0:
                            w = (a.w_ih_0 if d == 0 else a.w_ih_1) + gate * a.H * ld_w
                            product(init, ld_init, dz, ld, k, w, a.I, to, ld_to, n, begin, end)
                        else:
                            padded = (a.H + terms - 1) // terms * terms
                            w = packed + d * a.packed + gate * padded * term_bytes
                            affine(
                                *(init, ld_init, 0, 0, 0, w, dz, ld, k, w, a.packed_column),
                                *(to, ld_to, n, begin, end, a.I, NOTHING, a.tile),
                            )
                        init, ld_init = to, ld_to
            if terms > 1:
                store_rows(a.grad_x + row * ld_x, ld_x, to, ld_to, n, begin, end, a.I)

    return context.symbols.add(grad_x)


def _add_reduce_block(context: CodegenContext) -> Any:
    """Add `rows` rows from `row` on to the results' chunks `first` to `last`.

    Chunks are column blocks no wider than a tile: those of dW_ih, then those of dW_hh, then those
    of dW_hr, then the biases. The columns of dz are taken by segments of adjacent rows of a result.
    """
    unpack, minimum = memory.unpack_arguments(BackwardArguments), memory.minimum()
    segment, sums = _add_segment(context), _add_sums(context)
    runs = context.layout.runs
    count, firsts = len(runs), tuple(run.block for run in runs)
    blocks = tuple(run.blocks for run in runs)
    inputs, hidden = (
        tuple(run.input_gate for run in runs),
        tuple(run.hidden_gate for run in runs),
    )

    def reduce_block(
        arguments: int,
        task: int,
        d: int,
        first: int,
        last: int,
        chunks_i: int,
        chunks_h: int,
        chunks_o: int,
        row: int,
        rows: int,
    ) -> None:
        a = unpack(arguments)
        for i in range(count):
            start, length = firsts[i] * a.H, blocks[i] * a.H
            for low in range(0, length, SEGMENT):
                row_i = inputs[i] * a.H + low if inputs[i] >= 0 else -1
                row_h = hidden[i] * a.H + low if hidden[i] >= 0 else -1
                segment(
                    *(arguments, task, d, first, last, chunks_i, chunks_h, chunks_o, row, rows),
                    *(start + low, minimum(SEGMENT, length - low), row_i, row_h, -1),
                )
        for low in range(0, a.P if chunks_o > 0 else 0, SEGMENT):
            segment(
                *(arguments, task, d, first, last, chunks_i, chunks_h, chunks_o, row, rows),
                *(a.dz_columns - a.P + low, minimum(SEGMENT, a.P - low), -1, -1, low),
            )
        if last > chunks_i + chunks_h + chunks_o:
            sums(arguments, task, d, row, rows)

    return context.symbols.add(reduce_block)


def _add_segment(context: CodegenContext) -> Any:
    """The part of `reduce_block` for `columns` columns of dz from `start` on.

    They are rows `row_i` on of dW_ih, `row_h` on of dW_hh and `row_o` on of dW_hr, or of none of
    one of these where the number is negative.
    """
    unpack, minimum = memory.unpack_arguments(BackwardArguments), memory.minimum()
    pack_dz, product = _add_pack_dz(context), _add_product(context)
    size = context.storage.itemsize

    def segment(
        arguments: int,
        task: int,
        d: int,
        first: int,
        last: int,
        chunks_i: int,
        chunks_h: int,
        chunks_o: int,
        row: int,
        rows: int,
        start: int,
        columns: int,
        row_i: int,
        row_h: int,
        row_o: int,
    ) -> None:
        a = unpack(arguments)
        groups = (columns + a.outer_rows - 1) // a.outer_rows
        dz_block = a.reduction + task * a.reduction_size
        operand = dz_block + groups * a.outer_rows * REDUCTION_ROWS * size
        keep, matrices = a.N - row - rows, minimum(last, chunks_i + chunks_h + chunks_o)
        # Of fewer rows, the memory of an operand holds more chunks. Those that are packed together
        # are written row by row of the result, and so in long runs where there is little to sum.
        chunk, some, packed = first, REDUCTION_ROWS // rows, 0
        while chunk < matrices:
            kind, begin, chunks, to_row = _INPUTS, 0, chunks_i, row_i
            if chunk >= chunks_i + chunks_h:
                kind, begin, chunks, to_row = _OUTPUTS, chunks_i + chunks_h, chunks_o, row_o
            elif chunk >= chunks_i:
                kind, begin, chunks, to_row = _STATES, chunks_i, chunks_h, row_h
            end = minimum(matrices, begin + chunks)
            if to_row >= 0:
                end = minimum(chunk + some, end)
                if packed == 0:
                    pack_dz(arguments, d, dz_block, row, rows, start, columns)
                    packed = 1
                product(
                    *(arguments, d, kind, chunk - begin, end - begin, chunks),
                    *(dz_block, operand, row, rows, keep, to_row, columns),
                )
            chunk = end

    return context.symbols.add(segment)


def _add_pack_dz(context: CodegenContext) -> Any:
    """Pack a block of dz as `[groups][REDUCTION_ROWS][outer_rows]`, zeros after the last column.

    Pairs of rows lie as `[groups][REDUCTION_ROWS / 2][outer_rows][2]`.

    It has the `columns` columns from `start` on.
    """
    unpack, minimum, maximum = (
        memory.unpack_arguments(BackwardArguments),
        memory.minimum(),
        memory.maximum(),
    )
    lanes, size, pack_rows = (
        context.lanes.count,
        context.storage.itemsize,
        memory.pack_rows(context.storage),
    )
    terms = context.storage.terms

    def pack_dz(
        arguments: int, d: int, to: int, row: int, rows: int, start: int, columns: int
    ) -> None:
        a = unpack(arguments)
        tile_rows, wide = a.outer_rows, a.dz_columns
        source = a.dz + ((d * a.N + row) * wide + start) * size
        for group in range((columns + tile_rows - 1) // tile_rows):
            place = to + group * tile_rows * REDUCTION_ROWS * size
            existing = minimum(tile_rows, columns - group * tile_rows)
            for n in range(0, rows, terms):
                # Whole vectors are faster. Their rest is written anew by the next ones. At the end
                # they would not lie within dz and its packed block.
                inside = (rows - n - terms) * minimum(wide, tile_rows) >= lanes * terms
                for first in range(0, tile_rows, lanes):
                    piece = minimum(lanes, tile_rows - first)
                    count = maximum(0, minimum(piece, existing - first))
                    if inside and count == piece:
                        piece, count = lanes, lanes
                    at = source + (n * wide + group * tile_rows + first) * size
                    here = place + (n * tile_rows + first * terms) * size
                    pack_rows(here, at, wide * size, rows - n, count, piece)

    return context.symbols.add(pack_dz)


def _add_pack_operand(context: CodegenContext) -> Any:
    """Pack `width` column vectors from `v` on of a block of what `kind` says.

    The layout is `[REDUCTION_ROWS][width][lanes]`, of pairs of rows `[REDUCTION_ROWS /
    2][width][lanes][2]`.
    """
    unpack, pack_rows = (
        memory.unpack_arguments(BackwardArguments),
        memory.pack_rows(context.storage),
    )
    read_int, minimum, row_inputs = memory.read_int(), memory.minimum(), context.row_inputs
    lanes, vector_bytes, size = (
        context.lanes.count,
        context.lanes.vector_bytes,
        context.storage.itemsize,
    )
    terms, stored_bytes = context.storage.terms, context.storage.vector_bytes

    def pack_operand(
        arguments: int, d: int, to: int, kind: int, v: int, width: int, row: int, rows: int
    ) -> None:
        a = unpack(arguments)
        columns, features = a.I, a.I + row_inputs * a.D * a.H
        if kind != _INPUTS:
            columns = a.P if kind == _STATES else a.H
        for n in range(0, rows, terms):
            source, ld = a.x + (row + n) * features * size, features * size
            if kind == _STATES:
                address = a.before + 8 * (d * a.N + row + n)
                source = read_int(address)
                if terms > 1 and n + 1 < rows:
                    ld = read_int(address + 8) - source
            elif kind == _OUTPUTS:
                source, ld = a.outputs + ((row + n) * a.D + d) * a.H * size, a.D * a.H * size
            for i in range(width):
                count = minimum(lanes, columns - (v + i) * lanes)
                at = to + (n // terms * width + i) * vector_bytes
                pack_rows(at, source + (v + i) * stored_bytes, ld, rows - n, count, lanes)

    return context.symbols.add(pack_operand)


def _add_product(context: CodegenContext) -> Any:
    """Add the product of packed columns of dz and an operand to chunks `first` to `last` of dW.

    dW is what `kind` says; it has `chunks` chunks. Their operands are packed one after the other at
    `operand`. The columns of dz belong to the `dz_columns` rows of dW from `to_row` on. With `keep`
    0 the product overwrites dW.
    """
    unpack, minimum = memory.unpack_arguments(BackwardArguments), memory.minimum()
    outer, pack_operand = context.tiles.outer(), _add_pack_operand(context)
    lanes, size = context.lanes.count, context.lanes.itemsize
    vector_bytes, terms = context.lanes.vector_bytes, context.storage.terms
    stored_size = context.storage.itemsize

    def product(
        arguments: int,
        d: int,
        kind: int,
        first: int,
        last: int,
        chunks: int,
        dz_block: int,
        operand: int,
        row: int,
        rows: int,
        keep: int,
        to_row: int,
        dz_columns: int,
    ) -> None:
        a = unpack(arguments)
        tile_rows, columns = a.outer_rows, a.I
        to = a.grad_w_ih_0 if d == 0 else a.grad_w_ih_1
        if kind == _STATES:
            columns, to = a.P, a.grad_w_hh_0 if d == 0 else a.grad_w_hh_1
        elif kind == _OUTPUTS:
            columns, to = a.H, a.grad_w_hr_0 if d == 0 else a.grad_w_hr_1
        to += to_row * columns * size
        wide, groups = (columns + lanes - 1) // lanes, (rows + terms - 1) // terms
        packed = groups * a.outer_vectors * vector_bytes
        for chunk in range(first, last):
            v, end = wide * chunk // chunks, wide * (chunk + 1) // chunks
            at = operand + (chunk - first) * packed
            pack_operand(arguments, d, at, kind, v, end - v, row, rows)
        for group in range((dz_columns + tile_rows - 1) // tile_rows):
            dz = dz_block + group * tile_rows * REDUCTION_ROWS * stored_size
            block = to + group * tile_rows * columns * size
            existing = 256 * minimum(tile_rows, dz_columns - group * tile_rows)
            for chunk in range(first, last):
                v, end = wide * chunk // chunks, wide * (chunk + 1) // chunks
                outer(
                    *(16 * tile_rows + end - v, dz, operand + (chunk - first) * packed, groups),
                    *(block + v * vector_bytes, columns * size),
                    *(existing + minimum(lanes, columns - (end - 1) * lanes), keep),
                )

    return context.symbols.add(product)


def _add_sums(context: CodegenContext) -> Any:
    """Add the column sums of a block of dz to the gradients of biases and parameters.

    If the block is the last one, which comes first, they overwrite these.
    """
    unpack, read_int = memory.unpack_arguments(BackwardArguments), memory.read_int()
    size, add_sums = context.lanes.itemsize, _add_sums_of_run(context)
    parameters, parameter_blocks, places = _graded(context)
    direction = 8 * len(context.cell.parameters)
    runs = context.layout.runs
    count, firsts = len(runs), tuple(run.block for run in runs)
    blocks = tuple(run.blocks for run in runs)
    inputs, hidden = (
        tuple(run.input_gate for run in runs),
        tuple(run.hidden_gate for run in runs),
    )

    def sums(arguments: int, task: int, d: int, row: int, rows: int) -> None:
        a = unpack(arguments)
        grad_b, grad_b_hh = (
            a.grad_b_0 if d == 0 else a.grad_b_1,
            a.grad_b_hh_0 if d == 0 else a.grad_b_hh_1,
        )
        for i in range(count):
            start, length = firsts[i] * a.H, blocks[i] * a.H
            if grad_b != 0 and inputs[i] >= 0:
                to = grad_b + inputs[i] * a.H * size
                add_sums(arguments, task, d, to, start, length, row, rows)
            if grad_b_hh != 0 and hidden[i] >= 0:
                to = grad_b_hh + hidden[i] * a.H * size
                add_sums(arguments, task, d, to, start, length, row, rows)
        for i in range(parameters):
            to = read_int(arguments + places[i] + direction * d)
            if to != 0:
                add_sums(arguments, task, d, to, parameter_blocks[i] * a.H, a.H, row, rows)

    return context.symbols.add(sums)


def _graded(context: CodegenContext) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
    """How many parameters a gradient reaches, their blocks of dz, and their places.

    A place is where the address of the gradient of direction 0 is: bytes behind the first argument.
    """
    cell = context.cell
    found = [
        (block, 8 * parameter_argument(BackwardArguments, cell, k, 1))
        for k, block in enumerate(context.layout.parameter_blocks)
        if block is not None
    ]
    blocks, places = tuple(block for block, _ in found), tuple(place for _, place in found)
    return len(found), blocks or (0,), places or (0,)


def _add_sums_of_run(context: CodegenContext) -> Any:
    """Add the sums of `columns` columns of dz from `start` on, over some rows, to `to`."""
    unpack, minimum = memory.unpack_arguments(BackwardArguments), memory.minimum()
    storage, computed = context.storage, context.computed
    column_sum, add, copy = (
        memory.column_sum(storage),
        memory.add(computed, computed, computed),
        memory.copy(computed, computed),
    )
    lanes, vector_bytes, size = context.lanes.count, context.lanes.vector_bytes, storage.itemsize
    stored_bytes = storage.vector_bytes

    def sums_of_run(
        arguments: int, task: int, d: int, to: int, start: int, columns: int, row: int, rows: int
    ) -> None:
        a = unpack(arguments)
        # The memory of this task holds no packed block now.
        wide, result = a.dz_columns, a.reduction + task * a.reduction_size
        dz = a.dz + ((d * a.N + row) * wide + start) * size
        for v in range((columns + lanes - 1) // lanes):
            at, count = v * vector_bytes, minimum(lanes, columns - v * lanes)
            column_sum(result, dz + v * stored_bytes, wide * size, rows, count)
            if row + rows == a.N:
                copy(to + at, result, count, count)
            else:
                add(to + at, to + at, result, count)

    return context.symbols.add(sums_of_run)

"""The gradients that are one reduction each over all rows: grad_x and those of the weights.

    dW_ih = sum_n dz_n x_n^T      dW_hh = sum_n dz_n h'_n^T      db = sum_n dz_n
    dW_hr = sum_n g_n out_n^T     grad_x_n = sum over directions of W_ih^T dz_n

h'_n is the state before row n's step, g_n the gradient of h_n. The gradients of the cell's
parameters are sums as db is, of their columns of dz; those of the row inputs are columns of grad_x
that the cell's step writes (see `cell_step`). Of dz_n, W_ih and b_ih take the blocks of zx, W_hh
and b_hh those of zh (see `rnnjit.codegen.cell_layout`). Rows are summed in blocks of
`REDUCTION_ROWS`, whose bounds depend on N alone. Each block is packed so that the tile streams
through it. The sums of the blocks are added from the last to the first, the order in which dz is
computed. Tasks divide the columns of the results, never the rows, so the sums do not depend on the
number of threads.

The first parameter of each PrimFunc is a `BackwardArguments`, which has the shapes.
"""

from __future__ import annotations

from typing import Any

from tvm.tirx.script.builder import ir as T

from rnnjit.codegen.cell_layout import CellLayout
from rnnjit.codegen.plan import REDUCTION_ROWS, ROW_BLOCK, SEGMENT
from rnnjit.ir import CellSpec
from rnnjit_tvm.arguments import BackwardArguments
from rnnjit_tvm.backward_step import zeros_at
from rnnjit_tvm.reduction_memory import add_reduction_memory
from rnnjit_tvm.tensorir import (
    Lanes,
    Module,
    address,
    call,
    either,
    integer,
    least,
    loop,
    when,
)
from rnnjit_tvm.time_loop import (
    Variable,
    affine,
    backward_arguments,
    blocks,
    columns_of_w_hh,
    columns_of_x,
    of_direction,
    of_parameter,
    part_of,
)


def add_reductions(module: Module, layout: CellLayout, tile: tuple[int, int]) -> None:
    """PrimFunc `backward_reduce`, and what it calls.

    `backward_reduce(block, task, tasks, low, high, first, last)` computes a task's part of grad_x
    of rows `low` to `high`, and sums blocks `first` to `last` of rows.

    Args:
        module: what to add it to.
        layout: of the cell.
        tile: rows and vectors of the tile with the most rows.
    """
    _add_grad_x(module, layout)
    add_reduction_memory(module, tile[0])
    _add_product(module, tile[0])
    _add_reduce(module, layout, *tile)


def _chunks(lanes: Lanes, columns: Any, widest: int, wanted: Any) -> Any:
    """How many blocks of columns, no wider than a tile, a result has; none if it is not wanted."""
    number = T.truncdiv(lanes.vectors(columns) + (widest - 1), integer(widest))
    return either(wanted != 0, number, integer(0))


def _add_reduce(module: Module, layout: CellLayout, rows: int, widest: int) -> None:
    lanes = module.lanes

    def body(block: Any, *sizes: Any) -> None:
        task, count, low, high, first, last = sizes
        a, own = backward_arguments(block), address(block, integer(0))
        with when(a.grad_x != 0):
            call("grad_x", own, task, count, low, high)
        inputs = _chunks(lanes, a.I, widest, a.grad_w_ih_0)
        hidden = _chunks(lanes, a.P, widest, a.grad_w_hh_0)
        outputs = _chunks(lanes, a.H, widest, a.grad_w_hr_0)
        summed = T.Or(a.grad_b_0 != 0, a.grad_b_hh_0 != 0)
        for _, gradient in _parameter_gradients(block, layout, integer(0)):
            summed = T.Or(summed, gradient != 0)
        biased = T.bind(summed)
        matrices = T.bind(inputs + hidden + outputs)
        chunks = T.bind(matrices + T.cast(biased, "int64"))
        start, stop = part_of(T.bind(a.D * chunks), task, count)
        with loop(integer(0), a.D) as d:
            begin = T.bind(T.max(start - d * chunks, 0))
            end = T.bind(T.min(stop - d * chunks, chunks))
            with when(end > begin), loop(integer(0), last - first) as index:
                row = T.bind((last - 1 - index) * REDUCTION_ROWS)
                some = least(a.N - row, integer(REDUCTION_ROWS))
                bounds = (inputs, hidden, outputs)
                _reduce_block(
                    module, layout, (block, a, task, d), (begin, end, *bounds), (row, some)
                )

    names = ["task", "tasks", "low", "high", "first", "last"]
    module.add("backward_reduce", ["block"], names, body, dtype="int64")
    _add_segment(module, layout.cell, rows)


def _reduce_block(
    module: Module,
    layout: CellLayout,
    where: tuple[Any, BackwardArguments, Any, Any],
    chunks: tuple[Any, ...],
    rows: tuple[Any, Any],
) -> None:
    """Add a block of rows to chunks of the results.

    Chunks are column blocks no wider than a tile: those of dW_ih, then those of dW_hh, then those
    of dW_hr, then the biases and parameters. The columns of dz are taken by segments of adjacent
    rows of a result.
    """
    block, a, task, d = where
    own, none = address(block, integer(0)), integer(-1)
    _, last, inputs, hidden, outputs = chunks
    for run in layout.runs:
        start = T.bind(a.H * run.block)
        with blocks(integer(0), a.H * run.blocks, SEGMENT) as (low, columns):
            row_i = none if run.input_gate < 0 else T.bind(a.H * run.input_gate + low)
            row_h = none if run.hidden_gate < 0 else T.bind(a.H * run.hidden_gate + low)
            call(
                *("reduce_segment", own, task, d, *chunks, *rows),
                *(start + low, columns, row_i, row_h, none),
            )
    with when(outputs > 0), blocks(integer(0), a.P, SEGMENT) as (low, columns):
        start = T.bind(a.dz_columns - a.P + low)
        call(
            *("reduce_segment", own, task, d, *chunks, *rows),
            *(start, columns, none, none, low),
        )
    with when(last > inputs + hidden + outputs):
        for run in layout.runs:
            start, columns = T.bind(a.H * run.block), T.bind(a.H * run.blocks)
            for name, gate in (("grad_b", run.input_gate), ("grad_b_hh", run.hidden_gate)):
                to = of_direction(a, d, name)
                if gate >= 0:
                    _sums(module, a, d, to, (a.H * gate, start, columns), rows)
        for number, to in _parameter_gradients(block, layout, d):
            _sums(module, a, d, to, (integer(0), T.bind(a.H * number), a.H), rows)


def _parameter_gradients(block: Any, layout: CellLayout, d: Any) -> list[tuple[int, Any]]:
    """For each parameter that gets one: its block of dz, and its gradient's address or 0."""
    return [
        (place, of_parameter(block, BackwardArguments, layout.cell, d, number, 1))
        for number, place in enumerate(layout.parameter_blocks)
        if place is not None
    ]


def _sums(
    module: Module,
    a: BackwardArguments,
    d: Any,
    to: Any,
    columns: tuple[Any, Any, Any],
    rows: tuple[Any, Any],
) -> None:
    """Add the sums of some columns of dz over some rows to a vector's gradient, if it is wanted.

    If the rows are the last ones, which come first, they overwrite it.
    """
    lanes, (first, start, count), (row, some) = module.lanes, columns, rows
    with when(to != 0), blocks(integer(0), count, lanes.count) as (at, width):
        dz = lanes.after(a.dz, (d * a.N + row) * a.dz_columns + start + at)
        out = lanes.element(lanes.after(to, first + at))
        keep = T.cast(row + some < a.N, "int64")
        call("sum_rows", lanes.element(dz), out, a.dz_columns, some, width, keep)


def _add_grad_x(module: Module, layout: CellLayout) -> None:
    """PrimFunc `grad_x(block, task, tasks, low, high)`: a task's part of grad_x of some rows."""
    lanes = module.lanes
    runs = [run for run in layout.runs if run.input_gate >= 0]

    def body(block: Any, *sizes: Any) -> None:
        task, count, low, high = sizes
        a, zero = backward_arguments(block), integer(0)
        wide, zeros = T.bind(lanes.vectors(a.I)), zeros_at(lanes, a)
        packed = lanes.after(a.scratch, lanes.vectors(columns_of_w_hh(a, layout.cell)) * a.panel)
        ld_x = columns_of_x(a, layout.cell)
        pieces = T.bind(T.truncdiv(high - low + (ROW_BLOCK - 1), integer(ROW_BLOCK)))
        first, last = part_of(pieces, task, count)
        with loop(first, last) as piece:
            row = T.bind(low + piece * ROW_BLOCK)
            rows = least(high - row, integer(ROW_BLOCK))
            to = lanes.after(a.grad_x, row * ld_x)
            with loop(zero, a.D) as d:
                for number, run in enumerate(runs):
                    place = T.bind((d * a.N + row) * a.dz_columns + a.H * run.block)
                    dz, k = lanes.after(a.dz, place), T.bind(a.H * run.blocks)
                    gate = T.bind(a.H * (run.input_gate * lanes.count))
                    w = lanes.after(packed, d * a.packed + gate)
                    init, ld_init = to, ld_x
                    if number == 0:
                        init, ld_init = either(d == 0, zeros, to), either(d == 0, zero, ld_x)
                    affine(
                        *(lanes, (init, ld_init), (dz, a.dz_columns, k), (dz, zero, zero)),
                        *((w, a.panel), (to, ld_x), (rows, (zero, wide), a.I)),
                    )

    names = ["task", "tasks", "low", "high"]
    module.add("grad_x", ["block"], names, body, dtype="int64")


def _add_segment(module: Module, cell: CellSpec, tile_rows: int) -> None:
    """PrimFunc `reduce_segment`: the part of a block of rows for some adjacent columns of dz.

    `reduce_segment(block, task, d, first, last, inputs, hidden, outputs, row, rows, start, columns,
    row_i, row_h, row_o)`. The `columns` columns from `start` on are rows `row_i` on of dW_ih,
    `row_h` on of dW_hh and `row_o` on of dW_hr, or of none of one of these where the number is
    negative.
    """
    lanes = module.lanes

    def body(block: Any, *sizes: Any) -> None:
        task, d, first, last, inputs, hidden, outputs, row, rows, start, columns, *to_rows = sizes
        a, own, zero = backward_arguments(block), address(block, integer(0)), integer(0)
        groups = T.bind(T.truncdiv(columns + (tile_rows - 1), integer(tile_rows)))
        dz_block = lanes.after(a.reduction, task * a.reduction_size)
        operand = lanes.after(dz_block, groups * (tile_rows * REDUCTION_ROWS))
        packed = Variable(zero)
        begin = zero
        kinds = (("x", inputs), ("h", hidden), ("o", outputs))
        for (kind, chunks), to_row in zip(kinds, to_rows, strict=True):
            low = T.bind(T.max(first, begin))
            high = T.bind(T.min(last, begin + chunks))
            with when(T.And(to_row >= 0, low < high)):
                with when(packed.get() == 0):
                    packed.set(integer(1))
                    call("pack_dz", own, d, dz_block, row, rows, start, columns)
                _products(
                    *(lanes, own, a, kind, d, (low - begin, high - begin, chunks)),
                    *(dz_block, operand, (row, rows, to_row, columns), cell),
                )
            begin = T.bind(begin + chunks)

    names = ["task", "d", "first", "last", "inputs", "hidden", "outputs", "row", "rows", "start"]
    names += ["columns", "row_i", "row_h", "row_o"]
    module.add("reduce_segment", ["block"], names, body, dtype="int64")


def _products(
    lanes: Lanes,
    own: Any,
    a: BackwardArguments,
    kind: str,
    d: Any,
    chunks: tuple[Any, Any, Any],
    dz_block: Any,
    operand: Any,
    rows: tuple[Any, Any, Any, Any],
    cell: CellSpec,
) -> None:
    """Add a segment's products to chunks of dW: with x, with the states before, or with outputs."""
    columns = {"x": a.I, "h": a.P, "o": a.H}[kind]
    out = of_direction(a, d, {"x": "grad_w_ih", "h": "grad_w_hh", "o": "grad_w_hr"}[kind])
    row, some, to_row, height = rows
    to, wide = lanes.after(out, to_row * columns), T.bind(lanes.vectors(columns))
    with loop(chunks[0], chunks[1]) as chunk:
        v, end = part_of(wide, chunk, chunks[2])
        at, zero = T.bind(v * lanes.count), integer(0)
        width = least(columns - at, (end - v) * lanes.count)
        if kind == "h":
            call(
                *("gather", lanes.element(operand), a.before + (d * a.N + row) * 8),
                *(at * lanes.itemsize, some, width),
            )
        else:
            ld = columns_of_x(a, cell)
            source = lanes.after(a.x, row * ld + at)
            if kind == "o":
                source, ld = lanes.after(a.outputs, (row * a.D + d) * a.H + at), a.D * a.H
            call("pack_operand", lanes.element(operand), source, ld, some, width)
        keep = T.bind(row + some < a.N)
        target = lanes.after(to, at)
        init = either(keep, target, zeros_at(lanes, a))
        ld_init = either(keep, columns, zero)
        call(
            *("outer", lanes.element(init), lanes.element(dz_block), lanes.element(operand)),
            *(lanes.element(target), ld_init, columns, some, height, width),
        )


def _add_product(module: Module, tile_rows: int) -> None:
    """PrimFunc `outer`: a chunk of dW, init plus the product of packed dz and operand.

    `outer(init, dz, operand, out, ld_init, ld_out, k, height, width)` for `k` rows of dz; the chunk
    has `height` rows and `width` columns.
    """
    lanes = module.lanes

    def body(init: Any, dz: Any, operand: Any, out: Any, *sizes: Any) -> None:
        ld_init, ld_out, k, height, width = sizes
        zero, panel = integer(0), integer(REDUCTION_ROWS * lanes.count)
        with blocks(zero, height, tile_rows) as (low, count):
            source = address(dz, low * REDUCTION_ROWS)
            pointers = (
                address(init, low * ld_init),
                *(source, source, address(operand, zero)),
                address(out, low * ld_out),
            )
            shape = (ld_init, integer(1), integer(tile_rows), k, zero, zero, panel, ld_out)
            call("block", *pointers, *shape, count, width)

    names = ["ld_init", "ld_out", "k", "height", "width"]
    module.add("outer", ["init", "dz", "operand", "out"], names, body)

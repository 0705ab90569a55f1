"""What the sums over all rows read: packed columns of dz and of its operands, and sums of dz."""

from __future__ import annotations

from typing import Any

from tvm.tirx.script.builder import ir as T

from rnnjit.codegen.plan import REDUCTION_ROWS
from rnnjit_tvm.tensorir import Module, address, call, integer, least, local, loop, pointer, when
from rnnjit_tvm.time_loop import Masked, backward_arguments, blocks

#: Rows in a chain of additions before it is added to the total.
_CHAIN = 16


def add_reduction_memory(module: Module, tile_rows: int) -> None:
    """PrimFuncs `pack_dz`, `pack_operand`, `gather` and `sum_rows`.

    Args:
        module: what to add them to.
        tile_rows: rows of the tile with the most rows.
    """
    _add_pack_dz(module, tile_rows)
    _add_pack_operand(module)
    _add_sum_rows(module)


def _add_pack_dz(module: Module, tile_rows: int) -> None:
    """PrimFunc `pack_dz(block, d, to, row, rows, start, columns)`: a block of columns of dz.

    It is packed as `[groups][REDUCTION_ROWS][tile_rows]`.
    """
    lanes = module.lanes

    def body(block: Any, *sizes: Any) -> None:
        d, to, row, rows, start, columns = sizes
        a = backward_arguments(block)
        source = lanes.memory(lanes.after(a.dz, (d * a.N + row) * a.dz_columns + start))
        target = lanes.memory(to)
        with blocks(integer(0), columns, tile_rows) as (low, count):
            place = T.bind(low * REDUCTION_ROWS)
            with loop(integer(0), rows) as n:
                for first in range(0, tile_rows, lanes.count):
                    piece = min(lanes.count, tile_rows - first)
                    some = T.max(T.min(count - first, integer(piece)), 0)
                    masked = Masked(lanes, T.bind(some))
                    value = masked.load(source, n * a.dz_columns + low + first)
                    at = place + n * tile_rows + first
                    Masked(lanes, integer(piece)).store(target, at, value)

    names = ["d", "to", "row", "rows", "start", "columns"]
    module.add("pack_dz", ["block"], names, body, dtype="int64")


def _add_pack_operand(module: Module) -> None:
    """PrimFuncs `pack_operand` and `gather`: columns of some rows as panels `[k][lanes]`.

    `pack_operand(panels, source, ld, k, columns)` has rows `ld` elements apart from the address
    `source` on. `gather(panels, rows_at, offset, k, columns)` has row i `offset` bytes after the
    i-th address in the array at `rows_at`. Panels are `REDUCTION_ROWS` vectors apart.
    """
    lanes = module.lanes

    def pack(panels: Any, *sizes: Any) -> None:
        source, ld, k, columns = sizes
        with blocks(integer(0), columns, lanes.count) as (at, count):
            here = lanes.element(lanes.after(source, at))
            call("pack", here, address(panels, at * REDUCTION_ROWS), ld, k, count)

    def gather(panels: Any, *sizes: Any) -> None:
        rows_at, offset, k, columns = sizes
        rows = pointer(rows_at, "int64")
        with loop(integer(0), k) as i:
            row = lanes.memory(T.bind(rows[i] + offset))
            with blocks(integer(0), columns, lanes.count) as (at, count):
                value = lanes.load(row, at, count)
                T.buffer_store(panels, value, [lanes.at(at * REDUCTION_ROWS + i * lanes.count)])

    module.add("pack_operand", ["panels"], ["source", "ld", "k", "columns"], pack)
    module.add("gather", ["panels"], ["rows_at", "offset", "k", "columns"], gather)


def _add_sum_rows(module: Module) -> None:
    """PrimFunc `sum_rows(x, out, ld, rows, count, keep)`: the sum of rows, on `count` lanes.

    It is added to what `out` holds if `keep` is 1.
    """
    lanes = module.lanes

    def body(x: Any, out: Any, ld: Any, rows: Any, count: Any, keep: Any) -> None:
        sums = local(2 * lanes.count, lanes.dtype)
        total, chain = lanes.at(integer(0)), lanes.at(integer(lanes.count))
        T.buffer_store(sums, lanes.zeros(), [total])
        with loop(integer(0), T.truncdiv(rows + (_CHAIN - 1), integer(_CHAIN))) as fold:
            start = T.bind(fold * _CHAIN)
            T.buffer_store(sums, lanes.zeros(), [chain])
            with loop(start, least(start + _CHAIN, rows)) as i:
                T.buffer_store(sums, sums[chain] + lanes.load(x, i * ld, count), [chain])
            T.buffer_store(sums, sums[total] + sums[chain], [total])
        with when(keep != 0):
            T.buffer_store(sums, sums[total] + lanes.load(out, integer(0), count), [total])
        lanes.store(out, integer(0), sums[total], count)

    module.add("sum_rows", ["x", "out"], ["ld", "rows", "count", "keep"], body)

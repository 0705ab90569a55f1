"""The gradients that are one reduction each over all rows of dz.

    dX = dZ W_ih   dW_ih = dZ^T X   dW_hh = dZ^T H_before   db = sum_n dz_n

Row n of H_before is the state before row n's step. Rows are summed in windows of `REDUCTION_ROWS`,
which stay in a core's own cache. The bounds of the windows are fixed, and so results are the same,
bit for bit, for any number of threads. For shapes see `BackwardArguments`.
"""

from __future__ import annotations

from typing import Any

from tvm.tirx.script.builder import ir as T

from rnnjit_tvm.backward import zeros_at
from rnnjit_tvm.plan import REDUCTION_ROWS
from rnnjit_tvm.tensorir import Lanes, Module, address, call, integer, least, loop, pointer, when
from rnnjit_tvm.time_loop import backward_arguments, of_direction, partition

#: Rows of grad_x that are computed at a time; a thread's rows of other gradients are multiples of
#: the second.
_ROW_BLOCK, _TILE = 64, 8
#: Rows in a chain of additions before it is added to the total.
_CHAIN = 16


def add_reductions(module: Module, widest: int) -> None:
    """The last phase of the backward kernel, `backward_reduce`.

    Args:
        module: what to add it to.
        widest: most vectors of the tile with the most rows; the width of a window.
    """
    _add_gather(module)
    _add_sum_rows(module)
    _add_outer(module, widest)
    _add_inputs(module)
    _add_reduce(module)


def _add_reduce(module: Module) -> None:
    """One thread's part of every gradient that is needed."""
    lanes, size = module.lanes, module.lanes.bits // 8

    def body(block: Any, thread: Any, threads: Any) -> None:
        a = backward_arguments(block)
        dz = pointer(a.dz, lanes.dtype)
        window = address(pointer(a.windows, lanes.dtype), thread * a.window)
        zeros = T.bind(a.scratch + zeros_at(a) * size)
        ld = T.bind(a.D * a.H)
        with when(a.grad_x != integer(0)):
            call("inputs", address(block, integer(0)), thread, threads)
        with loop(integer(0), a.D) as d:
            own = address(dz, d * a.H)
            sizes = (ld, a.N, a.H, thread, threads)
            w_ih = T.bind(of_direction(a, d, "grad_w_ih"))
            with when(w_ih != 0):
                call("outer", own, window, zeros, w_ih, integer(0), a.x, a.I, *sizes)
            w_hh = T.bind(of_direction(a, d, "grad_w_hh"))
            with when(w_hh != 0):
                before = T.bind(a.before + d * a.N * 8)
                call("outer", own, window, zeros, w_hh, before, integer(0), a.H, *sizes)
            b = T.bind(of_direction(a, d, "grad_b"))
            with when(b != 0), partition(lanes.vectors(a.H), thread, threads) as index:
                column = T.bind((thread + index * threads) * lanes.count)
                to = address(pointer(b + column * size, lanes.dtype), integer(0))
                count = least(a.H - column, integer(lanes.count))
                call("sum_rows", address(dz, d * a.H + column), to, ld, a.N, count)

    module.add_phase("backward_reduce", body)


def _add_inputs(module: Module) -> None:
    """PrimFunc `inputs(block, thread, threads)`: grad_x = dz W_ih, summed over directions."""
    lanes = module.lanes

    def body(block: Any, thread: Any, threads: Any) -> None:
        a = backward_arguments(block)
        dz, grad_x, scratch = (pointer(each, lanes.dtype) for each in (a.dz, a.grad_x, a.scratch))
        ld, zero = T.bind(a.D * a.H), integer(0)
        blocks = T.truncdiv(a.N + (_ROW_BLOCK - 1), integer(_ROW_BLOCK))
        with partition(blocks, thread, threads) as index:
            row = T.bind((thread + index * threads) * _ROW_BLOCK)
            rows = least(a.N - row, integer(_ROW_BLOCK))
            out = address(grad_x, row * a.I)

            def add(d: int, init: Any, ld_init: Any) -> None:
                source = address(dz, row * ld + d * a.H)
                w = address(scratch, d * a.packed + lanes.vectors(a.H) * a.panel)
                sizes = (ld_init, zero, zero, zero, ld, a.H, a.panel, a.I, rows, a.I)
                call("block", init, source, source, w, out, *sizes)

            add(0, address(scratch, zeros_at(a)), zero)
            with when(integer(1) < a.D):
                add(1, out, a.I)

    module.add("inputs", ["block"], ["thread", "threads"], body, dtype="int64")


def _add_outer(module: Module, widest: int) -> None:
    """PrimFunc `outer`: one thread's rows of `out = dz^T s`, with `out` `[H, columns]`.

    `outer(dz, window, zeros, out, rows_at, s, columns, ld, N, H, thread, threads)`, where
    `zeros`, `out` and `s` are addresses. `rows_at` is the address of an array of the addresses of
    the rows of s; if it is 0, s is contiguous.
    """
    lanes, size = module.lanes, module.lanes.bits // 8

    def body(dz: Any, window: Any, *sizes: Any) -> None:
        zeros, out, rows_at, s, columns, ld, N, H, thread, threads = sizes
        wide, zero = T.bind(lanes.vectors(columns)), integer(0)
        cuts = T.bind(T.truncdiv(wide + (widest - 1), integer(widest)))
        each = T.bind(T.truncdiv(H + threads * _TILE - 1, threads * _TILE) * _TILE)
        low = T.bind(thread * each)
        height = least(H - low, each)
        windows = T.truncdiv(N + (REDUCTION_ROWS - 1), integer(REDUCTION_ROWS))
        with when(height > 0), loop(zero, windows) as number, loop(zero, cuts) as cut:
            first = T.bind(T.truncdiv(wide * cut, cuts))
            vectors = T.bind(T.truncdiv(wide * (cut + 1), cuts) - first)
            column, start = T.bind(first * lanes.count), T.bind(number * REDUCTION_ROWS)
            width = least(columns - column, vectors * lanes.count)
            rows = least(N - start, integer(REDUCTION_ROWS))
            _fill(lanes, window, (rows_at, s, columns, column, start, rows), vectors)
            to = T.bind(out + (low * columns + column) * size)
            init = T.bind(T.Select(number == 0, zeros, to))
            operand = address(dz, start * ld + low)
            pointers = (
                address(pointer(init, lanes.dtype), zero),
                operand,
                operand,
                address(window, zero),
                address(pointer(to, lanes.dtype), zero),
            )
            ld_init = T.Select(number == 0, zero, columns)
            panel = integer(REDUCTION_ROWS * lanes.count)
            shape = (ld_init, integer(1), ld, rows, zero, zero, panel, columns)
            call("block", *pointers, *shape, height, width)

    sizes = ["zeros", "out", "rows_at", "s", "columns", "ld", "N", "H", "thread", "threads"]
    module.add("outer", ["dz", "window"], sizes, body)


def _fill(lanes: Lanes, window: Any, source: tuple[Any, ...], vectors: Any) -> None:
    """Fill a window with rows of s: a panel for each of `vectors` vectors."""
    rows_at, s, columns, column, start, rows = source
    size = lanes.bits // 8
    with loop(integer(0), vectors) as v:
        at = T.bind(column + v * lanes.count)
        panel = address(window, v * (REDUCTION_ROWS * lanes.count))
        count = least(columns - at, integer(lanes.count))
        with T.If(rows_at != 0):
            with T.Then():
                call("gather", panel, rows_at + start * 8, at * size, rows, count)
            with T.Else():
                here = pointer(s + (start * columns + at) * size, lanes.dtype)
                call("pack", address(here, integer(0)), panel, columns, rows, count)


def _add_gather(module: Module) -> None:
    """PrimFunc `gather(panel, rows_at, offset, k, count)`: panel[i, l] = row i [l].

    Row i is `offset` bytes after the i-th address in the array at `rows_at`.
    """
    lanes = module.lanes

    def body(panel: Any, rows_at: Any, offset: Any, k: Any, count: Any) -> None:
        rows = pointer(rows_at, "int64")
        with loop(integer(0), k) as i:
            row = pointer(rows[i] + offset, lanes.dtype)
            value = lanes.load(row, integer(0), count)
            T.buffer_store(panel, value, [lanes.at(i * lanes.count)])

    module.add("gather", ["panel"], ["rows_at", "offset", "k", "count"], body)


def _add_sum_rows(module: Module) -> None:
    """PrimFunc `sum_rows(x, out, ld, rows, count)`: the sum of rows, on `count` lanes."""
    lanes = module.lanes

    def body(x: Any, out: Any, ld: Any, rows: Any, count: Any) -> None:
        sums = T.alloc_buffer((2 * lanes.count,), lanes.dtype, scope="local", layout=None)
        total, chain = lanes.at(integer(0)), lanes.at(integer(lanes.count))
        T.buffer_store(sums, lanes.zeros(), [total])
        with loop(integer(0), T.truncdiv(rows + (_CHAIN - 1), integer(_CHAIN))) as fold:
            start = T.bind(fold * _CHAIN)
            T.buffer_store(sums, lanes.zeros(), [chain])
            with loop(start, least(start + _CHAIN, rows)) as i:
                T.buffer_store(sums, sums[chain] + lanes.load(x, i * ld, count), [chain])
            T.buffer_store(sums, sums[total] + sums[chain], [total])
        lanes.store(out, integer(0), sums[total], count)

    module.add("sum_rows", ["x", "out"], ["ld", "rows", "count"], body)

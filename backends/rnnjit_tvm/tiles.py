"""Register tiles and blocks of them: the matrix part of every kernel.

A tile keeps `rows x vectors` accumulators in vector registers while it runs over k, so that
nothing but its operands is read from memory (the scheme of GotoBLAS micro-kernels: Goto and van de
Geijn, "Anatomy of High-Performance Matrix Multiplication", ACM TOMS 34(3), 2008).

Each output element is summed in one order, whatever the tile's shape: chains of `FOLD`
multiply-adds in the order of k, each chain added to the total before it. How rows and columns are
cut into tiles, or divided between threads, changes no bit of a result. The chains keep the
rounding error of n terms near that of sqrt(n * FOLD) rather than n (Higham, "The accuracy of
floating point summation", SIAM J. Sci. Comput. 14(4), 1993), as in a BLAS that cuts k into blocks.
"""

from __future__ import annotations

from typing import Any

from tvm.tirx.script.builder import ir as T

from rnnjit_tvm.tensorir import (
    Lanes,
    Module,
    address,
    call,
    integer,
    least,
    local,
    loop,
    when,
)

#: Multiply-adds in a chain before it is added to the total.
FOLD = 64

_POINTERS = ["init", "a", "b", "w", "out"]
_SIZES = ["ld_init", "ld_a", "step_a", "k_a", "ld_b", "k_b", "panel", "ld_out"]


def add_tiles(module: Module, shapes: tuple[tuple[int, int], ...]) -> None:
    """PrimFunc `block`, and what it calls: out = init + a W_a + b W_b for any number of rows.

    `block(init, a, b, w, out, ld_init, ld_a, step_a, k_a, ld_b, k_b, panel, ld_out, rows, columns)`
    with a `[rows, k_a]`, b `[rows, k_b]`, out and init `[rows, columns]`, whose rows are `ld_...`
    elements apart (0 if one row serves for all). Columns of a are `step_a` elements apart, so that
    it may be a transposed matrix; those of the others are adjacent. `w` holds the weights as panels
    of one vector of columns each, `panel` elements apart: `[k_a + k_b, lanes]`, W_a's rows first.

    Args:
        module: what to add it to.
        shapes: the tiles, as from `rnnjit_tvm.tile_shapes.tile_shapes`.
    """
    for rows, widest in shapes:
        for vectors in range(1, widest + 1):
            _add_tile(module, rows, vectors)
        _add_rows(module, rows, widest)
    _add_block(module, [rows for rows, _ in shapes])


def _add_tile(module: Module, rows: int, vectors: int) -> None:
    """PrimFunc `tile_<rows>x<vectors>`: one tile, whose last vector may be `columns` wide."""
    lanes = module.lanes

    def body(init: Any, a: Any, b: Any, w: Any, out: Any, *sizes: Any) -> None:
        ld_init, ld_a, step_a, k_a, ld_b, k_b, panel, ld_out, columns = sizes
        last = T.bind(columns - (vectors - 1) * lanes.count)
        mask = lanes.mask(last)
        total = local(rows * vectors * lanes.count, lanes.dtype)
        for i in range(rows):
            for j in range(vectors):
                at = lanes.at(i * ld_init + j * lanes.count)
                value = init[at]
                if j == vectors - 1:
                    value = T.masked_load(lanes.vector, init, at, mask)
                _set(lanes, total, i * vectors + j, value)
        chain = local(rows * vectors * lanes.count, lanes.dtype)
        sums, shape = (total, chain), (rows, vectors)
        _product(lanes, shape, sums, (a, ld_a, step_a, k_a), (w, panel, integer(0)))
        _product(lanes, shape, sums, (b, ld_b, integer(1), k_b), (w, panel, k_a))
        for i in range(rows):
            for j in range(vectors):
                at = lanes.at(i * ld_out + j * lanes.count)
                value = _get(lanes, total, i * vectors + j)
                if j < vectors - 1:
                    T.buffer_store(out, value, [at])
                else:
                    T.evaluate(T.masked_store(out, value, at, mask))

    module.add(f"tile_{rows}x{vectors}", _POINTERS, [*_SIZES, "columns"], body)


def _product(
    lanes: Lanes,
    shape: tuple[int, int],
    sums: tuple[Any, Any],
    operand: tuple[Any, Any, Any, Any],
    weights: tuple[Any, Any, Any],
) -> None:
    """Add to a tile the product of an operand and packed weights.

    Args:
        lanes: the vectors.
        shape: rows and vectors of the tile.
        sums: the tile's totals, and memory for its chains.
        operand: memory, distance of rows, distance of columns, and k.
        weights: memory, distance of panels, and the first of the panels' rows.
    """
    total, chain = sums
    x, ld, step, k = operand
    w, panel, first = weights
    rows, vectors = shape
    with loop(integer(0), T.truncdiv(k + (FOLD - 1), integer(FOLD))) as fold:
        start = T.bind(fold * FOLD)
        stop = least(start + FOLD, k)
        for c in range(rows * vectors):
            _set(lanes, chain, c, lanes.zeros())
        with loop(start, stop) as i:
            row = T.bind((first + i) * lanes.count)
            columns = [T.bind(w[lanes.at(j * panel + row)]) for j in range(vectors)]
            for r in range(rows):
                spread = T.bind(lanes.spread(x[r * ld + i * step]))
                for j in range(vectors):
                    c = r * vectors + j
                    value = lanes.multiply_add(spread, columns[j], _get(lanes, chain, c))
                    _set(lanes, chain, c, value)
        for c in range(rows * vectors):
            _set(lanes, total, c, _get(lanes, total, c) + _get(lanes, chain, c))


def _get(lanes: Lanes, array: Any, index: int) -> Any:
    return array[lanes.at(integer(index * lanes.count))]


def _set(lanes: Lanes, array: Any, index: int, value: Any) -> None:
    T.buffer_store(array, value, [lanes.at(integer(index * lanes.count))])


def _add_rows(module: Module, rows: int, widest: int) -> None:
    """PrimFunc `rows_<rows>`: `blocks` times that many rows, all columns.

    Columns are cut into tiles of nearly equal width. Rows are the inner loop, so that all but the
    first read a tile's panels from the nearest cache.
    """
    lanes = module.lanes

    def body(init: Any, a: Any, b: Any, w: Any, out: Any, *sizes: Any) -> None:
        ld_init, ld_a, _, _, ld_b, _, panel, ld_out, blocks, columns = sizes
        wide = T.bind(lanes.vectors(columns))
        cuts = T.bind(T.truncdiv(wide + (widest - 1), integer(widest)))
        with loop(integer(0), cuts) as cut:
            first = T.bind(T.truncdiv(wide * cut, cuts))
            vectors = T.bind(T.truncdiv(wide * (cut + 1), cuts) - first)
            column = T.bind(first * lanes.count)
            here = T.bind(columns - column)
            with loop(integer(0), blocks) as block:
                row = T.bind(block * rows)
                pointers = [
                    address(init, row * ld_init + column),
                    address(a, row * ld_a),
                    address(b, row * ld_b),
                    address(w, first * panel),
                    address(out, row * ld_out + column),
                ]
                for width in range(1, widest + 1):
                    with when(vectors == width):
                        most = least(here, integer(width * lanes.count))
                        call(f"tile_{rows}x{width}", *pointers, *sizes[:8], most)

    module.add(f"rows_{rows}", _POINTERS, [*_SIZES, "blocks", "columns"], body)


def _add_block(module: Module, heights: list[int]) -> None:
    """PrimFunc `block`: rows by the tile with the most rows, and the rest by smaller tiles."""

    def body(init: Any, a: Any, b: Any, w: Any, out: Any, *sizes: Any) -> None:
        ld_init, ld_a, _, _, ld_b, _, _, ld_out, rows, columns = sizes
        row = integer(0)
        for height in heights:
            count = T.bind(T.truncdiv(rows - row, integer(height)))
            pointers = [
                address(init, row * ld_init),
                address(a, row * ld_a),
                address(b, row * ld_b),
                address(w, integer(0)),
                address(out, row * ld_out),
            ]
            with when(count > 0):
                call(f"rows_{height}", *pointers, *sizes[:8], count, columns)
            row = T.bind(row + count * height)

    module.add("block", _POINTERS, [*_SIZES, "rows", "columns"], body)

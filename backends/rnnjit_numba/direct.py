"""Direct tiles: a few rows times a matrix that is not packed.

Packing pays when a matrix is used for many rows. For a streaming step it would cost more than the
step itself, so these tiles read the row-major matrix in place. The forward tile loads one square
block at a time and transposes it in registers. Terms are summed in the order of the packed tiles
(see `tiles`), and so results are the same, bit for bit.
"""

from __future__ import annotations

from itertools import product
from typing import Any

from llvmlite import ir

from rnnjit_numba import amx_products
from rnnjit_numba.memory import transposed
from rnnjit_numba.simd import I32, I64, define_tile, emitting
from rnnjit_numba.storage import BFloat16, Storage
from rnnjit_numba.tiles import (
    FOLD,
    folded_chains,
    in_two_parts,
    over_terms,
    rank_one,
    steps,
    switch,
)

#: The numbers of rows for which there is a direct tile, descending.
DIRECT_ROWS = (6, 5, 4, 3, 2, 1)
#: The numbers of column vectors for which there is a direct transposed tile, descending.
DIRECT_WIDTHS = (4, 1)
DIRECT_ARGUMENTS = 15
TRANSPOSED_ARGUMENTS = 10


def direct(storage: Storage) -> Any:
    """Intrinsic: one vector of columns of `out = init + x @ w1.T + h @ w2.T`, for a few rows.

    `tile(rows, init, ld_init, x, ld_x, k1, w1, ld_w1, h, ld_h, k2, w2, ld_w2, out, ld_out_tail)`
    with arguments as in `TileSet.affine`, except that `w1` and `w2` are row-major, `[columns, k]`
    with rows `ld_w1` and `ld_w2` bytes apart: row j belongs to lane j of the result.
    """
    if isinstance(storage, BFloat16) and storage.amx:
        return amx_products.direct(storage, DIRECT_ROWS, DIRECT_ARGUMENTS)
    name = f"rnnjit_direct_tile_{storage.suffix}"

    def body(builder: Any, rows: Any, *args: Any) -> None:
        switch(builder, rows, {n: n for n in DIRECT_ROWS}, lambda b, n: _emit(storage, n, b, *args))

    def emit(builder: Any, *args: Any) -> None:
        builder.call(define_tile(builder.module, name, DIRECT_ARGUMENTS, body), args)

    return emitting(DIRECT_ARGUMENTS, emit)


def _emit(
    storage: Storage,
    rows: int,
    builder: Any,
    init: Any,
    ld_init: Any,
    x: Any,
    ld_x: Any,
    k1: Any,
    w1: Any,
    ld_w1: Any,
    h: Any,
    ld_h: Any,
    k2: Any,
    w2: Any,
    ld_w2: Any,
    out: Any,
    ld_out_tail: Any,
) -> None:
    """Code of the tile for one number of rows."""
    lanes = storage.lanes
    ld_out, tail = builder.ashr(ld_out_tail, I64(8)), builder.and_(ld_out_tail, I64(255))
    mask = lanes.mask(builder, tail)
    total = [[lanes.masked_load(builder, row, mask)] for row in steps(builder, init, ld_init, rows)]

    def accumulate(sums: Any, part: Any) -> Any:
        a, ld_a, k, w, ld_w = part
        rows_of_a = steps(builder, a, ld_a, rows)
        rows_of_w = _existing_rows(builder, w, ld_w, tail, lanes.count)

        def whole(index: Any, inner: Any) -> Any:
            return _block(storage, builder, index, inner, None, rows_of_a, rows_of_w)

        def last(index: Any, inner: Any) -> Any:
            inside = storage.row_mask(builder, builder.sub(k, index))
            return _block(storage, builder, index, inner, inside, rows_of_a, rows_of_w)

        terms = lanes.count * storage.terms
        return folded_chains(lanes, builder, k, sums, whole, FOLD, terms, last)

    parts = (x, ld_x, k1, w1, ld_w1), (h, ld_h, k2, w2, ld_w2)
    total = in_two_parts(builder, parts, total, accumulate)
    for row, values in zip(steps(builder, out, ld_out, rows), total, strict=True):
        lanes.masked_store(builder, values[0], row, mask)


def _existing_rows(builder: Any, w: Any, ld_w: Any, count: Any, lanes: int) -> list[Any]:
    """The addresses of a matrix's rows, one for each lane: the last one's for lanes beyond `count`.

    What these compute is not stored.
    """
    found, last = [w], builder.sub(count, I64(1))
    for j in range(1, lanes):
        exists = builder.icmp_signed(">", count, I64(j))
        row = builder.select(exists, I64(j), last)
        found.append(builder.add(w, builder.mul(row, ld_w)))
    return found


def _block(
    storage: Storage,
    builder: Any,
    start: Any,
    sums: Any,
    mask: Any,
    rows_of_a: list[Any],
    rows_of_w: list[Any],
) -> Any:
    """`sums` plus the terms of the square block of w that begins at `start`.

    Terms that are not in a mask are zeros.
    """
    lanes = storage.lanes
    offset = builder.mul(start, I64(storage.itemsize))
    block = [storage.load_row(builder, builder.add(row, offset), mask) for row in rows_of_w]
    columns = transposed(lanes, builder, block)
    a = [storage.load_row(builder, builder.add(row, offset), mask) for row in rows_of_a]
    lane = ir.VectorType(I32, lanes.count)
    result = [list(row) for row in sums]
    for i, column in enumerate(columns):
        which = ir.Constant(lane, [i] * lanes.count)
        for m, values in enumerate(a):
            scalar = builder.shuffle_vector(values, ir.Constant(values.type, ir.Undefined), which)
            result[m] = [storage.multiply_add(builder, scalar, column, result[m][0])]
    return result


def transposed_rows(storage: Storage) -> tuple[int, ...]:
    """The numbers of rows for which there is a direct transposed tile, descending.

    Units of narrower vectors may have 16 registers, which hold three rows of the widest tile.
    """
    most = DIRECT_ROWS[0] if storage.lanes.vector_bytes >= 64 else 3
    return tuple(n for n in DIRECT_ROWS if n <= most)


def direct_transposed(storage: Storage) -> Any:
    """Intrinsic: some vectors of columns of `out = init + a @ w`, for a few rows.

    `tile(shape, init, ld_init, a, ld_a, k, w, ld_w, out, ld_out_tail)` with `shape` 16 * rows +
    vectors and arguments as in `TileSet.affine`, except that `w` is row-major, `[k, columns]` with
    rows `ld_w` bytes apart.
    """
    if isinstance(storage, BFloat16) and storage.amx:
        return amx_products.direct_transposed(storage, DIRECT_WIDTHS, TRANSPOSED_ARGUMENTS)
    name = f"rnnjit_direct_transposed_tile_{storage.suffix}"
    sizes = product(transposed_rows(storage), DIRECT_WIDTHS)
    cases = {16 * n + width: (n, width) for n, width in sizes}

    def body(builder: Any, shape: Any, *args: Any) -> None:
        def code(inner: Any, case: tuple[int, int]) -> None:
            _emit_transposed(storage, case[0], case[1], inner, *args)

        switch(builder, shape, cases, code)

    def emit(builder: Any, *args: Any) -> None:
        builder.call(define_tile(builder.module, name, TRANSPOSED_ARGUMENTS, body), args)

    return emitting(TRANSPOSED_ARGUMENTS, emit)


def _emit_transposed(
    storage: Storage,
    rows: int,
    width: int,
    builder: Any,
    init: Any,
    ld_init: Any,
    a: Any,
    ld_a: Any,
    k: Any,
    w: Any,
    ld_w: Any,
    out: Any,
    ld_out_tail: Any,
) -> None:
    """Code of the transposed tile for one shape; only the last vector may be partial."""
    lanes = storage.lanes
    ld_out, tail = builder.ashr(ld_out_tail, I64(8)), builder.and_(ld_out_tail, I64(255))
    mask = lanes.mask(builder, tail)

    def load_row(row: Any) -> list[Any]:
        places = steps(builder, row, I64(lanes.vector_bytes), width)
        full = [lanes.load(builder, place) for place in places[:-1]]
        return [*full, lanes.masked_load(builder, places[-1], mask)]

    rows_of_a = steps(builder, a, ld_a, rows)
    full, none = ir.Constant(mask.type, [1] * lanes.count), ir.Constant(mask.type, None)

    def load_w(index: Any) -> list[Any]:
        """The vectors of `terms` rows from row `index` on, packed."""
        row = builder.add(w, builder.mul(index, ld_w))
        present = builder.icmp_signed("<", builder.add(index, I64(1)), k)
        following = builder.select(present, builder.add(row, ld_w), row)
        found = []
        for v in range(width):
            at, held = I64(v * storage.vector_bytes), mask if v == width - 1 else full
            masks = held, builder.select(present, held, none)
            places = builder.add(row, at), builder.add(following, at)
            found.append(storage.load_rows(builder, *places, masks))
        return found

    def step(load_terms: Any, index: Any, sums: Any) -> Any:
        offset = builder.mul(index, I64(storage.itemsize))
        scalars = [load_terms(builder, builder.add(row, offset)) for row in rows_of_a]
        return rank_one(storage, builder, sums, scalars, load_w(index))

    total = [load_row(row) for row in steps(builder, init, ld_init, rows)]
    total = over_terms(storage, builder, k, total, step)
    for row, values in zip(steps(builder, out, ld_out, rows), total, strict=True):
        places = steps(builder, row, I64(lanes.vector_bytes), width)
        for place, value in zip(places[:-1], values[:-1], strict=True):
            lanes.store(builder, value, place)
        lanes.masked_store(builder, values[-1], places[-1], mask)

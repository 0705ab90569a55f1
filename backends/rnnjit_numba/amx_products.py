"""Products of bfloat16 by tile registers: those of `tiles` and `direct`, in one order of terms.

Every element is summed in the same way, whatever the rows and columns beside it: each part of a
product is cut into blocks of 32 terms from its first term on, zeros behind the last one, and each
block's sum (see `amx`) is added to the total before it. The blocks keep the rounding error as small
as the chains of `tiles` do.

Operands are read in place but for a block that the terms do not fill, which is copied to the stack
frame. Tiles have as many rows and columns as there are, so nothing beyond them is read or written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from llvmlite import ir

from rnnjit_numba.amx import ROW_BYTES, ROWS, TERMS, TILES, TileSize, TileUnit, local, unit_of
from rnnjit_numba.simd import I32, I64, VOID, Lanes, declared, define_tile, emitting, loop
from rnnjit_numba.storage import BFloat16
from rnnjit_numba.tiles import steps, switch

BANDS_ARGUMENTS = 16
#: Bytes of a block of 32 terms of a packed column vector, which is a tile.
_TILE_BYTES = ROWS * ROW_BYTES
#: How many tiles of rows and of columns a block of sums may have.
_SHAPES = ((2, 2), (2, 1), (1, 4), (1, 2), (1, 1))


class _Part(NamedTuple):
    """A part of a sum of products, and the copy of its last, incomplete block of terms.

    Attributes:
        a, ld_a: rows of terms.
        k: the number of terms.
        w, ld_w: packed or row-major weights.
        rest: the terms of the last block, if it is incomplete, else 0.
        copy: of that block of the weights.
    """

    a: Any
    ld_a: Any
    k: Any
    w: Any
    ld_w: Any
    rest: Any
    copy: Any


def bands(storage: BFloat16) -> Any:
    """Intrinsic: a block of `out = init + x @ w1 + h @ w2`, for bands of rows.

    `tile(shape, rows, count, init, ld_init, x, ld_x, k1, w1, h, ld_h, k2, w2, ld_w, out,
    ld_out_tail)` with arguments as in `TileSet.affine`, except that `shape` is 16 * tiles of rows +
    column vectors: 2 and 1 or 2, or 1 and 1, 2 or 4. There are `count` bands, at least one, one
    after the other; each has `rows >> 8` rows in its first tiles and `rows & 255` in its second
    ones. Where these are not 0, the first ones have 16.
    """

    def body(builder: Any, shape: Any, *args: Any) -> None:
        def code(inner: Any, case: tuple[int, int]) -> None:
            _Bands(storage, *case).emit(inner, *args)

        switch(builder, shape, {16 * m + n: (m, n) for m, n in _SHAPES}, code)

    return _intrinsic("rnnjit_amx_bands", BANDS_ARGUMENTS, body)


def direct(storage: BFloat16, rows: tuple[int, ...], arguments: int) -> Any:
    """As `direct.direct`, for these numbers of rows.

    The weights are the left operand, and each row of terms is a right operand of one column.
    """

    def body(builder: Any, count: Any, *args: Any) -> None:
        switch(builder, count, {n: n for n in rows}, lambda b, n: _direct(storage, n, b, *args))

    return _intrinsic("rnnjit_amx_direct", arguments, body)


def direct_transposed(storage: BFloat16, widths: tuple[int, ...], arguments: int) -> Any:
    """As `direct.direct_transposed`, for these numbers of column vectors."""

    def body(builder: Any, shape: Any, *args: Any) -> None:
        def code(inner: Any, width: int) -> None:
            _transposed(storage, width, inner, rows, *args)

        rows = builder.ashr(shape, I64(4))
        switch(builder, builder.and_(shape, I64(15)), {n: n for n in widths}, code)

    return _intrinsic("rnnjit_amx_direct_transposed", arguments, body)


def _intrinsic(name: str, arguments: int, body: Any) -> Any:
    def emit(builder: Any, *args: Any) -> None:
        builder.call(define_tile(builder.module, name, arguments, body), args)

    return emitting(arguments, emit)


class _Bands:
    """Code of one shape: `m` tiles of rows by `n` column vectors.

    Tiles 0 to 3 are sums, 4 and 5 rows of terms, the others weights: the last vector has fewer
    columns, and so a tile of its own.
    """

    def __init__(self, storage: BFloat16, m: int, n: int) -> None:
        self.storage, self.m, self.n = storage, m, n
        self.unit = unit_of(storage.amx, storage.lanes)

    def emit(
        self,
        builder: Any,
        rows: Any,
        count: Any,
        init: Any,
        ld_init: Any,
        x: Any,
        ld_x: Any,
        k1: Any,
        w1: Any,
        h: Any,
        ld_h: Any,
        k2: Any,
        w2: Any,
        ld_w: Any,
        out: Any,
        ld_out_tail: Any,
    ) -> None:
        """Copy the last blocks of the weights, then compute one band after the other."""
        m, n, unit = self.m, self.n, self.unit
        ld_out, tail = builder.ashr(ld_out_tail, I64(8)), builder.and_(ld_out_tail, I64(255))
        held = [builder.ashr(rows, I64(8)), builder.and_(rows, I64(255))][:m]
        self._configure(builder, held, tail)
        parts = [
            self._part(builder, x, ld_x, k1, w1, ld_w),
            self._part(builder, h, ld_h, k2, w2, ld_w),
        ]
        band_rows = held[0] if m == 1 else builder.add(*held)
        copy = local(builder, m * _TILE_BYTES)

        def band(index: Any, _: Any) -> Any:
            first = builder.mul(index, band_rows)
            places = [
                (i, j, builder.add(first, I64(ROWS * i)), I64(ROW_BYTES * j))
                for i in range(m)
                for j in range(n)
            ]
            for i, j, row, at in places:
                address = builder.add(builder.add(init, builder.mul(row, ld_init)), at)
                unit.load(builder, i * n + j, address, ld_init)
            for part in parts:
                a = builder.add(part.a, builder.mul(first, part.ld_a))
                self._accumulate(builder, part, a, band_rows, copy)
            for i, j, row, at in places:
                address = builder.add(builder.add(out, builder.mul(row, ld_out)), at)
                unit.store(builder, i * n + j, address, ld_out)
            return []

        loop(builder, count, [], band, at_least_once=True)

    def _configure(self, builder: Any, rows: list[Any], tail: Any) -> None:
        full = I64(ROW_BYTES // 4)
        sizes: list[TileSize | None] = [None] * TILES
        for j in range(self.n):
            columns = tail if j == self.n - 1 else full
            for i, count in enumerate(rows):
                sizes[i * self.n + j] = TileSize(count, columns)
            sizes[self._weights(j)] = TileSize(I64(ROWS), columns)
        for i, count in enumerate(rows):
            sizes[4 + i] = TileSize(count, full)
        self.unit.configure(builder, sizes)

    def _weights(self, j: int) -> int:
        """The tile for weights of column vector j."""
        if j == self.n - 1:
            return 7
        return 6 if self.m == 2 else 5 + j % 2

    def _part(self, builder: Any, a: Any, ld_a: Any, k: Any, w: Any, ld_w: Any) -> _Part:
        """A part, whose last block of weights is copied if it is incomplete."""
        lanes = self.storage.lanes
        rest, copy = builder.and_(k, I64(TERMS - 1)), local(builder, self.n * _TILE_BYTES)
        columns = steps(builder, builder.add(w, _block(builder, k, _TILE_BYTES)), ld_w, self.n)
        with builder.if_then(builder.icmp_signed(">", rest, I64(0))):
            pairs = builder.ashr(builder.add(rest, I64(1)), I64(1))

            def pair(p: Any, _: Any) -> Any:
                inside = builder.icmp_signed("<", p, pairs)
                mask = lanes.mask(builder, builder.select(inside, I64(lanes.count), I64(0)))
                at = builder.mul(p, I64(ROW_BYTES))
                for j, column in enumerate(columns):
                    value = lanes.masked_load(builder, builder.add(column, at), mask)
                    place = builder.add(copy, I64(j * _TILE_BYTES))
                    lanes.store(builder, value, builder.add(place, at))
                return []

            loop(builder, I64(ROWS), [], pair, at_least_once=True)
        return _Part(a, ld_a, k, w, ld_w, rest, copy)

    def _accumulate(self, builder: Any, part: _Part, a: Any, rows: Any, copy: Any) -> None:
        """Add the products of a band, whose first row of terms is at `a`, to the tiles of sums."""

        def whole(index: Any, _: Any) -> Any:
            at_a = builder.add(a, builder.mul(index, I64(ROW_BYTES)))
            at_w = builder.add(part.w, builder.mul(index, I64(_TILE_BYTES)))
            self._block(builder, at_a, part.ld_a, at_w, part.ld_w)
            return []

        loop(builder, builder.ashr(part.k, I64(5)), [], whole)
        with builder.if_then(builder.icmp_signed(">", part.rest, I64(0))):
            source = builder.add(a, _block(builder, part.k, ROW_BYTES))
            _copy_rows(self.storage, builder, copy, source, part.ld_a, rows, part.rest)
            self._block(builder, copy, I64(ROW_BYTES), part.copy, I64(_TILE_BYTES))

    def _block(self, builder: Any, a: Any, ld_a: Any, w: Any, ld_w: Any) -> None:
        """Add the products of 32 terms."""
        unit, n = self.unit, self.n
        for i in range(self.m):
            address = builder.add(a, builder.mul(ld_a, I64(ROWS * i)))
            unit.load(builder, 4 + i, address, ld_a)
        for j, column in enumerate(steps(builder, w, ld_w, n)):
            unit.load(builder, self._weights(j), column, I64(ROW_BYTES))
            for i in range(self.m):
                unit.dot(builder, i * n + j, 4 + i, self._weights(j))


def _direct(
    storage: BFloat16,
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
    """Code of the direct product for one number of rows.

    Tile r has the sums of row r in a column, tile 6 rows of weights, and tile 7 a row of terms: its
    pairs lie in a column.
    """
    unit = unit_of(storage.amx, storage.lanes)
    ld_out, tail = builder.ashr(ld_out_tail, I64(8)), builder.and_(ld_out_tail, I64(255))
    column = TileSize(tail, I64(1))
    sums = [column if row < rows else None for row in range(6)]
    full = TileSize(tail, I64(ROW_BYTES // 4))
    unit.configure(builder, [*sums, full, TileSize(I64(ROWS), I64(1))])
    for r, row in enumerate(steps(builder, init, ld_init, rows)):
        unit.load(builder, r, row, I64(4))
    copy_w, copy_a = local(builder, _TILE_BYTES), local(builder, rows * ROW_BYTES)
    for a, ld_a, k, w, ld_w in ((x, ld_x, k1, w1, ld_w1), (h, ld_h, k2, w2, ld_w2)):

        def block(at_w: Any, distance_w: Any, at_a: Any, distance_a: Any) -> None:
            unit.load(builder, 6, at_w, distance_w)
            for r, row in enumerate(steps(builder, at_a, distance_a, rows)):
                unit.load(builder, 7, row, I64(4))
                unit.dot(builder, r, 6, 7)

        def whole(
            index: Any, _: Any, a: Any = a, ld_a: Any = ld_a, w: Any = w, ld_w: Any = ld_w
        ) -> Any:
            at = builder.mul(index, I64(ROW_BYTES))
            block(builder.add(w, at), ld_w, builder.add(a, at), ld_a)
            return []

        loop(builder, builder.ashr(k, I64(5)), [], whole)
        rest = builder.and_(k, I64(TERMS - 1))
        with builder.if_then(builder.icmp_signed(">", rest, I64(0))):
            at = _block(builder, k, ROW_BYTES)
            _copy_rows(storage, builder, copy_w, builder.add(w, at), ld_w, tail, rest)
            _copy_rows(storage, builder, copy_a, builder.add(a, at), ld_a, I64(rows), rest)
            block(copy_w, I64(ROW_BYTES), copy_a, I64(ROW_BYTES))
    for r, row in enumerate(steps(builder, out, ld_out, rows)):
        unit.store(builder, r, row, I64(4))


def _transposed(
    storage: BFloat16,
    width: int,
    builder: Any,
    rows: Any,
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
    """Code of the direct transposed product for one number of column vectors.

    The first tiles are sums, tile 4 rows of terms, 6 and 7 weights, 7 those of the last vector. A
    block of both operands is copied: weights, whose pairs lie in two rows, have to be packed.
    """
    unit: TileUnit = unit_of(storage.amx, storage.lanes)
    ld_out, tail = builder.ashr(ld_out_tail, I64(8)), builder.and_(ld_out_tail, I64(255))
    full, last = I64(ROW_BYTES // 4), width - 1
    sizes: list[TileSize | None] = [None] * TILES
    for v in range(width):
        sizes[v] = TileSize(rows, tail if v == last else full)
    sizes[4] = TileSize(rows, full)
    sizes[6:] = [TileSize(I64(ROWS), full), TileSize(I64(ROWS), tail)]
    unit.configure(builder, sizes)
    for v in range(width):
        unit.load(builder, v, builder.add(init, I64(v * ROW_BYTES)), ld_init)
    copy_w, copy_a = local(builder, width * _TILE_BYTES), local(builder, 6 * ROW_BYTES)

    def block(index: Any, _: Any) -> Any:
        first = builder.mul(index, I64(TERMS))
        rest = builder.sub(k, first)
        source = builder.add(a, builder.mul(index, I64(ROW_BYTES)))
        _copy_rows(storage, builder, copy_a, source, ld_a, rows, rest)
        rows_of_w = builder.add(w, builder.mul(first, ld_w))
        _pack_pairs(storage, builder, copy_w, rows_of_w, ld_w, rest, width, tail)
        unit.load(builder, 4, copy_a, I64(ROW_BYTES))
        for v in range(width):
            tile = 7 if v == last else 6
            unit.load(builder, tile, builder.add(copy_w, I64(v * _TILE_BYTES)), I64(ROW_BYTES))
            unit.dot(builder, v, 4, tile)
        return []

    loop(builder, builder.ashr(builder.add(k, I64(TERMS - 1)), I64(5)), [], block)
    for v in range(width):
        unit.store(builder, v, builder.add(out, I64(v * ROW_BYTES)), ld_out)


def _pack_pairs(
    storage: BFloat16,
    builder: Any,
    to: Any,
    w: Any,
    ld_w: Any,
    count: Any,
    width: int,
    tail: Any,
) -> None:
    """Pack 32 rows of `width` column vectors; zeros for those from row `count` on."""
    lanes = storage.lanes
    full, part, none = (lanes.mask(builder, n) for n in (I64(lanes.count), tail, I64(0)))

    def pair(p: Any, _: Any) -> Any:
        index = builder.mul(p, I64(2))
        first = builder.icmp_signed("<", index, count)
        second = builder.icmp_signed("<", builder.add(index, I64(1)), count)
        row = builder.add(w, builder.mul(index, ld_w))
        following = builder.add(row, ld_w)
        for v in range(width):
            held = part if v == width - 1 else full
            masks = builder.select(first, held, none), builder.select(second, held, none)
            at = I64(v * storage.vector_bytes)
            places = builder.add(row, at), builder.add(following, at)
            value = storage.load_rows(builder, *places, masks)
            place = builder.add(to, builder.add(I64(v * _TILE_BYTES), builder.mul(p, I64(64))))
            _store(storage, builder, value, place)
        return []

    loop(builder, I64(ROWS), [], pair, at_least_once=True)


def _copy_rows(
    storage: BFloat16, builder: Any, to: Any, source: Any, ld: Any, rows: Any, count: Any
) -> None:
    """Copy the first `count` of 32 terms of some rows, and write zeros behind them."""
    mask = storage.row_mask(builder, count)

    def row(index: Any, _: Any) -> Any:
        address = builder.add(source, builder.mul(index, ld))
        value = storage.load_row(builder, address, mask)
        _store(storage, builder, value, builder.add(to, builder.mul(index, I64(ROW_BYTES))))
        return []

    loop(builder, rows, [], row)


def _store(storage: BFloat16, builder: Any, value: Any, address: Any) -> None:
    """Write a vector of pairs."""
    builder.store(value, builder.inttoptr(address, storage.packed.as_pointer()), align=4)


def _block(builder: Any, k: Any, size: int) -> Any:
    """Where the block begins that `k` terms end in, of blocks of so many bytes."""
    return builder.mul(builder.ashr(k, I64(5)), I64(size))


def compared_products(
    symbols: Mapping[str, str], sizes: Sequence[tuple[int, int]], sleep: int
) -> str:
    """LLVM IR of a function `f(a, b, c, out)` for each kind of tiles, see `amx_check`.

    It writes c + a @ b of each size to `out`, one after the other.

    Args:
        symbols: the function's name by kind, as in `Isa.amx`.
        sizes: rows and columns of the sums.
        sleep: microseconds that the thread sleeps while its tiles hold operands.
    """
    module, lanes = ir.Module("amx"), Lanes(32, 16, fma=True)
    for kind, name in symbols.items():
        function = ir.Function(module, ir.FunctionType(VOID, [I64] * 4), name)
        builder = ir.IRBuilder(function.append_basic_block("entry"))
        a, b, c, out = function.args
        unit = unit_of(kind, lanes)
        for number, (rows, columns) in enumerate(sizes):
            full = TileSize(I64(rows), I64(16))
            held = [TileSize(I64(rows), I64(columns)), full, TileSize(I64(ROWS), I64(columns))]
            unit.configure(builder, held)
            for tile, address in enumerate((c, a, b)):
                unit.load(builder, tile, address, I64(ROW_BYTES))
            pause = declared(module, ir.FunctionType(I32, [I32]), "usleep")
            builder.call(pause, [I32(sleep)])
            unit.dot(builder, 0, 1, 2)
            unit.store(builder, 0, builder.add(out, I64(number * _TILE_BYTES)), I64(ROW_BYTES))
        unit.release(builder)
        builder.ret_void()
    return str(module)

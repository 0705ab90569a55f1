"""Tile registers: products of bfloat16 by Intel's AMX, and the same numbers without it.

A unit has eight tiles of at most 16 rows of 64 bytes. `dot(c, a, b)` adds a product to a tile of
float32: `a` has rows of 32 terms, and `b` has in its row p the terms 2p and 2p + 1 of each column,
side by side, as a packed operand has them (see `storage`). By the definition of `tdpbf16ps`
(Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2) an element becomes

    even = fma(a_30, b_30, ... fma(a_2, b_2, fma(a_0, b_0, 0)))
    odd = fma(a_31, b_31, ... fma(a_3, b_3, fma(a_1, b_1, 0)))
    c = c + (even + odd)

with float32 rounded to the nearest, ties to even, subnormal operands taken for zeros and subnormal
results flushed to zeros, whatever the thread's control register says. `vdpbf16ps` sums in another
order: it adds the odd term of a pair to c and then the even one, so that a chain of pairs is one
chain of multiply-adds. The bits of the two differ. Kernels for AMX therefore compute every product
but the sums over rows of the weights' gradients by tiles, those of a single row as well.

A product of terms commutes, so an element has the same bits where `a` and `b` change places. Terms
that are zeros on both sides change no chain.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from llvmlite import ir

from rnnjit_numba.simd import I32, I64, VOID, Lanes, declared, define, load, loop

#: The tiles of a unit, the rows of one, the bytes of a row, and the terms in a row of `a`.
TILES, ROWS, ROW_BYTES, TERMS = 8, 16, 64, 32
_I8, _I16 = ir.IntType(8), ir.IntType(16)
_CONFIGURATION = ir.VectorType(_I8, 64)
#: Where the configuration has the bytes of rows, two bytes each, and the numbers of rows.
_BYTES_AT, _ROWS_AT = 16, 48


class TileSize(NamedTuple):
    """What a tile holds: rows, and elements of four bytes in each."""

    rows: Any
    columns: Any


class TileUnit(Protocol):
    """Emits the operations on tiles. Tiles are numbered; addresses and distances are in bytes."""

    def configure(self, builder: Any, sizes: Sequence[TileSize | None]) -> None:
        """Give each tile its size. The tiles hold nothing after it."""

    def load(self, builder: Any, tile: int, address: Any, distance: Any) -> None:
        """Read a tile, whose rows are `distance` apart."""

    def dot(self, builder: Any, c: int, a: int, b: int) -> None:
        """Add the product of tiles `a` and `b` to tile `c`."""

    def store(self, builder: Any, tile: int, address: Any, distance: Any) -> None:
        """Write a tile to rows `distance` apart."""

    def release(self, builder: Any) -> None:
        """End the use of tiles on this thread."""


class Registers:
    """The processor's own tiles."""

    def configure(self, builder: Any, sizes: Sequence[TileSize | None]) -> None:
        """As `TileUnit.configure`, in the first palette: eight tiles of 16 rows."""
        place = local(builder, 64)
        builder.store(
            ir.Constant(_CONFIGURATION, [1] + [0] * 63),
            builder.inttoptr(place, _CONFIGURATION.as_pointer()),
            align=1,
        )

        def write(offset: int, value: Any, kind: Any) -> None:
            pointer = builder.inttoptr(builder.add(place, I64(offset)), kind.as_pointer())
            builder.store(builder.trunc(value, kind), pointer, align=1)

        for tile, size in enumerate(sizes):
            if size is not None:
                write(_BYTES_AT + 2 * tile, builder.mul(size.columns, I64(4)), _I16)
                write(_ROWS_AT + tile, size.rows, _I8)
        self._call(builder, "ldtilecfg", _pointer(builder, place))

    def load(self, builder: Any, tile: int, address: Any, distance: Any) -> None:
        """As `TileUnit.load`."""
        self._call(builder, "tileloadd64", _I8(tile), _pointer(builder, address), distance)

    def dot(self, builder: Any, c: int, a: int, b: int) -> None:
        """As `TileUnit.dot`."""
        self._call(builder, "tdpbf16ps", _I8(c), _I8(a), _I8(b))

    def store(self, builder: Any, tile: int, address: Any, distance: Any) -> None:
        """As `TileUnit.store`."""
        self._call(builder, "tilestored64", _I8(tile), _pointer(builder, address), distance)

    def release(self, builder: Any) -> None:
        """As `TileUnit.release`."""
        self._call(builder, "tilerelease")

    def _call(self, builder: Any, name: str, *args: Any) -> None:
        signature = ir.FunctionType(VOID, [arg.type for arg in args])
        builder.call(declared(builder.module, signature, f"llvm.x86.{name}"), args)


class Emulated:
    """Tiles in memory, for tests and for the comparison with the processor's own.

    It has the order of terms and the roundings of `tdpbf16ps`. A result that is subnormal after it
    was rounded to float32 is flushed.

    Args:
        lanes: vectors of 16 elements of float32.
    """

    def __init__(self, lanes: Lanes) -> None:
        self._lanes = lanes
        self._sizes: Sequence[TileSize | None] = ()
        self._memory: Any = None

    def configure(self, builder: Any, sizes: Sequence[TileSize | None]) -> None:
        """As `TileUnit.configure`."""
        self._sizes, self._memory = sizes, local(builder, TILES * ROWS * ROW_BYTES)

    def load(self, builder: Any, tile: int, address: Any, distance: Any) -> None:
        """As `TileUnit.load`."""
        self._move(builder, tile, address, distance, loads=True)

    def store(self, builder: Any, tile: int, address: Any, distance: Any) -> None:
        """As `TileUnit.store`."""
        self._move(builder, tile, address, distance, loads=False)

    def _move(self, builder: Any, tile: int, address: Any, distance: Any, *, loads: bool) -> None:
        lanes = self._lanes

        def body(
            inner: Any, place: Any, address: Any, distance: Any, rows: Any, columns: Any
        ) -> None:
            mask = lanes.mask(inner, columns)

            def row(index: Any, _: Any) -> Any:
                own = inner.add(place, inner.mul(index, I64(ROW_BYTES)))
                other = inner.add(address, inner.mul(index, distance))
                if loads:
                    lanes.store(inner, lanes.masked_load(inner, other, mask), own)
                else:
                    lanes.masked_store(inner, lanes.load(inner, own), other, mask)
                return []

            loop(inner, rows, [], row)

        name = f"rnnjit_amx_emulated_{'load' if loads else 'store'}"
        function = define(builder.module, name, 5, body)
        builder.call(function, [self._place(builder, tile), address, distance, *self._size(tile)])

    def dot(self, builder: Any, c: int, a: int, b: int) -> None:
        """As `TileUnit.dot`."""
        sums, left, right = (self._size(tile) for tile in (c, a, b))
        # The processor refuses other sizes, and a tile that is given twice.
        assert sums == TileSize(left.rows, right.columns), (c, a, b)
        assert left.columns == right.rows == I64(TERMS // 2), (c, a, b)
        assert len({c, a, b}) == 3, (c, a, b)
        function = define(builder.module, "rnnjit_amx_emulated_dot", 4, self._dot)
        places = (self._place(builder, tile) for tile in (c, a, b))
        builder.call(function, [*places, sums.rows])

    def _dot(self, builder: Any, c: Any, a: Any, b: Any, rows: Any) -> None:
        lanes, zero = self._lanes, self._lanes.constant(0.0)

        def row(index: Any, _: Any) -> Any:
            at = builder.mul(index, I64(ROW_BYTES))
            place, row_of_a = builder.add(c, at), builder.add(a, at)

            def pair(p: Any, block: Any) -> Any:
                scalar = load(builder, builder.add(row_of_a, builder.mul(p, I64(4))), I32, 4)
                left = self._halves(builder, self._broadcast(builder, scalar))
                address = builder.add(b, builder.mul(p, I64(ROW_BYTES)))
                right = self._halves(builder, load(builder, address, lanes.integer, 4))
                sums = zip(left, right, block[0], strict=True)
                return [[self._flushed(builder, lanes.multiply_add(builder, *s)) for s in sums]]

            even, odd = loop(builder, I64(TERMS // 2), [[zero, zero]], pair)[0]
            total = self._flushed(builder, lanes.load(builder, place))
            both = self._flushed(builder, builder.fadd(even, odd))
            lanes.store(builder, self._flushed(builder, builder.fadd(total, both)), place)
            return []

        loop(builder, rows, [], row)

    def release(self, builder: Any) -> None:
        """As `TileUnit.release`: memory needs none."""

    def _size(self, tile: int) -> TileSize:
        size = self._sizes[tile]
        assert size is not None, f"tile {tile} has no size"
        return size

    def _place(self, builder: Any, tile: int) -> Any:
        return builder.add(self._memory, I64(tile * ROWS * ROW_BYTES))

    def _broadcast(self, builder: Any, pair: Any) -> Any:
        kind = self._lanes.integer
        undefined = ir.Constant(kind, ir.Undefined)
        single = builder.insert_element(undefined, pair, I32(0))
        return builder.shuffle_vector(single, undefined, ir.Constant(kind, None))

    def _halves(self, builder: Any, pairs: Any) -> list[Any]:
        """The first and the second elements of pairs, widened; zeros for subnormal numbers."""
        first = builder.shl(pairs, self._lanes.integers(16))
        second = builder.and_(pairs, self._lanes.integers(0xFFFF0000))
        wide = (builder.bitcast(half, self._lanes.vector) for half in (first, second))
        return [self._flushed(builder, half) for half in wide]

    def _flushed(self, builder: Any, value: Any) -> Any:
        """Zeros of the same sign for subnormal numbers."""
        lanes = self._lanes
        bits = builder.bitcast(value, lanes.integer)
        exponent = builder.and_(bits, lanes.integers(0x7F800000))
        tiny = builder.icmp_unsigned("==", exponent, lanes.integers(0))
        sign = builder.and_(bits, lanes.integers(0x80000000))
        return builder.bitcast(builder.select(tiny, sign, bits), lanes.vector)


def unit_of(kind: str, lanes: Lanes) -> TileUnit:
    """The tiles of an instruction set, by `Isa.amx`."""
    return Registers() if kind == "tiles" else Emulated(lanes)


def local(builder: Any, size: int) -> Any:
    """The address of `size` bytes in the stack frame of a function."""
    with builder.goto_entry_block():
        place = builder.alloca(ir.ArrayType(_I8, size))
        place.align = ROW_BYTES
        return builder.ptrtoint(place, I64)


def _pointer(builder: Any, address: Any) -> Any:
    return builder.inttoptr(address, _I8.as_pointer())

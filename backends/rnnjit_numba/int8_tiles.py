"""Tiles of int8 products: rows of activations, quantized here, times rows of an int8 matrix.

A row of float32 numbers is quantized when a product needs it: `a = round(v * 127 / m)`, where m is
its largest absolute value, and its scale is `m / 127`. It lies in memory as its scale and, from
`HEAD` bytes on, the bytes `a + 128`, which are unsigned as the processor's dot product takes them
(`vpdpbusd`: Intel, "Architecture Instruction Set Extensions Programming Reference", AVX512_VNNI).

Weights are read as they lie, row-major. A tile keeps in registers the sums of some rows of
activations with some rows of the matrix, each in a vector whose lanes are partial sums. These are
transposed and added at the end: lane j has the sum of row j of the matrix. Sums are exact, and so
no way to cut a product changes a bit of a result.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llvmlite import ir

from rnnjit_numba.int8_plan import CHUNK, HEAD
from rnnjit_numba.simd import I32, I64, Lanes, declared, define, emitting, load, loop
from rnnjit_numba.tiles import steps, switch

#: The numbers of rows of activations for which there is a tile, descending.
TILE_ROWS = (4, 2, 1)
#: Vectors of partial sums that a tile keeps in registers.
_SUMS = 16
_QUANTIZE_ARGUMENTS, _TILE_ARGUMENTS = 3, 13
_I8 = ir.IntType(8)
#: The bits of infinity: those of NaN are larger, without the sign.
_INFINITY = 0x7F800000
#: Added to a small number it leaves the number, rounded to the nearest, ties to even, in the low
#: bits: 1.5 * 2^23.
_ROUND = 12582912.0


@dataclass(frozen=True)
class Int8Products:
    """The code of int8 products for one vector unit.

    Attributes:
        lanes: vectors of float32.
        dot: whether the target multiplies and adds four bytes a lane by one instruction. Else bytes
            are widened; the integers are the same.
    """

    lanes: Lanes
    dot: bool

    @property
    def sums(self) -> Any:
        """The LLVM type of a vector of sums."""
        return self.lanes.integer

    def quantize(self) -> Any:
        """Intrinsic `quantize(source, k, to)`: quantize the k numbers at `source`, see above.

        A row with a NaN or an infinity has scale NaN. One of zeros, or of numbers so small that
        `127 / m` overflows, has scale 0 and zeros. The bytes up to the next multiple of `CHUNK` are
        0, by which a product may multiply anything.
        """
        name = f"rnnjit_quantize_{self.lanes.suffix}"

        def emit(builder: Any, *args: Any) -> None:
            body = self._quantize
            builder.call(define(builder.module, name, _QUANTIZE_ARGUMENTS, body), args)

        return emitting(_QUANTIZE_ARGUMENTS, emit)

    def tile(self) -> Any:
        """Intrinsic: one vector of columns of `out = init + a @ w.T`, for a few rows.

        `tile(rows, init, ld_init, a, ld_a, k, w, ld_w, scales, sums, out, ld_out, count)`
        where

        * `rows` is one of `TILE_ROWS`;
        * `init` and `out` are rows of float32, `ld_init` and `ld_out` apart, of `count` columns;
        * `a` are quantized rows of k numbers, `ld_a` apart;
        * `w` are `count` rows of an int8 matrix, `ld_w` apart, and `scales` and `sums` their scales
          and the sums of their numbers.

        Addresses and distances are in bytes.
        """
        name = f"rnnjit_int8_tile_{self.lanes.suffix}"

        def body(builder: Any, rows: Any, *args: Any) -> None:
            count = args[-1]
            whole = builder.icmp_signed("==", count, I64(self.lanes.count))
            chosen = builder.add(builder.mul(rows, I64(2)), builder.zext(whole, I64))
            cases = {2 * n + full: (n, full) for n in TILE_ROWS for full in (0, 1)}
            switch(builder, chosen, cases, lambda b, case: self._tile(b, *case, *args))

        def emit(builder: Any, *args: Any) -> None:
            builder.call(define(builder.module, name, _TILE_ARGUMENTS, body), args)

        return emitting(_TILE_ARGUMENTS, emit)

    def _quantize(self, builder: Any, source: Any, k: Any, to: Any) -> None:
        lanes, scalar = self.lanes, self.lanes.scalar
        magnitudes = lanes.integers(0x7FFFFFFF)
        vectors = _blocks(builder, k, lanes.count)

        def row(index: Any) -> tuple[Any, Any]:
            mask = lanes.mask(builder, builder.sub(k, builder.mul(index, I64(lanes.count))))
            at = builder.add(source, builder.mul(index, I64(lanes.vector_bytes)))
            return lanes.masked_load(builder, at, mask), mask

        def larger(index: Any, found: Any) -> Any:
            bits = builder.and_(builder.bitcast(row(index)[0], self.sums), magnitudes)
            above = builder.icmp_signed(">", bits, found[0][0])
            return [[builder.select(above, bits, found[0][0])]]

        ((largest,),) = loop(builder, vectors, [[lanes.integers(0)]], larger)
        signature = ir.FunctionType(I32, [self.sums])
        name = f"llvm.vector.reduce.smax.v{lanes.count}i32"
        bits = builder.call(declared(builder.module, signature, name), [largest])
        m, zero, limit = builder.bitcast(bits, scalar), scalar(0.0), scalar(127.0)
        factor = builder.fdiv(limit, m)
        finite = builder.icmp_signed("<", bits, I32(_INFINITY))
        above_zero = builder.fcmp_ordered("<", factor, scalar(float("inf")))
        usable = builder.and_(finite, above_zero)
        scale = builder.select(usable, builder.fdiv(m, limit), zero)
        scale = builder.select(finite, scale, scalar(float("nan")))
        builder.store(scale, builder.inttoptr(to, scalar.as_pointer()), align=4)
        factors = lanes.broadcast(builder, builder.select(usable, factor, zero))
        bytes_type = ir.VectorType(_I8, lanes.count)

        def write(index: Any, found: Any) -> Any:
            values, mask = row(index)
            scaled = builder.fmul(values, factors)
            for order, bound in (("<", 127.0), (">", -127.0)):
                # A NaN, which is in no order, becomes the bound: its row's scale is NaN.
                edge = lanes.constant(bound)
                scaled = builder.select(builder.fcmp_ordered(order, scaled, edge), scaled, edge)
            rounded = builder.bitcast(builder.fadd(scaled, lanes.constant(_ROUND)), self.sums)
            small = builder.trunc(rounded, bytes_type)
            unsigned = builder.xor(small, ir.Constant(bytes_type, [0x80] * lanes.count))
            kept = builder.select(mask, unsigned, ir.Constant(bytes_type, None))
            at = builder.add(to, builder.add(I64(HEAD), builder.mul(index, I64(lanes.count))))
            builder.store(kept, builder.inttoptr(at, bytes_type.as_pointer()), align=1)
            return found

        padded = builder.mul(_blocks(builder, k, CHUNK), I64(CHUNK // lanes.count))
        loop(builder, padded, [], write)

    def _tile(
        self,
        builder: Any,
        rows: int,
        full: int,
        init: Any,
        ld_init: Any,
        a: Any,
        ld_a: Any,
        k: Any,
        w: Any,
        ld_w: Any,
        scales: Any,
        sums: Any,
        out: Any,
        ld_out: Any,
        count: Any,
    ) -> None:
        """Code of the tile for one number of rows; if `full` is 1, `count` is that of all lanes."""
        lanes, width = self.lanes, max(4, min(self.lanes.count, _SUMS // rows))
        rows_of_a = steps(builder, a, ld_a, rows)
        numbers = [builder.add(row, I64(HEAD)) for row in rows_of_a]
        last = builder.sub(count, I64(1))
        parts: list[list[Any]] = [[] for _ in range(rows)]
        # Few registers address the rows: one of each four, and the distances of the others.
        near = [I64(0), *(builder.mul(ld_w, I64(n)) for n in (1, 2, 3))]
        for first in range(0, lanes.count, width):
            rows_of_w = []
            for j in range(first, first + width, 4 if full else 1):
                # The lanes beyond the last row repeat it.
                inside = builder.icmp_signed("<", I64(j), last)
                index = builder.select(inside, I64(j), last)
                rows_of_w.append(builder.add(w, builder.mul(index, ld_w)))
            distances = near if full else near[:1]
            found = self._products(builder, numbers, rows_of_w, distances, k)
            for row, vectors in zip(parts, found, strict=True):
                row += _pairs_added(builder, lanes, vectors)
        mask = lanes.mask(builder, count)
        offsets = builder.bitcast(lanes.masked_load(builder, sums, mask), self.sums)
        offsets = builder.shl(offsets, lanes.integers(7))
        of_rows = lanes.masked_load(builder, scales, mask)
        starts, places = steps(builder, init, ld_init, rows), steps(builder, out, ld_out, rows)
        for vectors, start, place, row in zip(parts, starts, places, rows_of_a, strict=True):
            total = builder.sub(_blocks_added(builder, lanes, vectors), offsets)
            scale = lanes.broadcast(builder, load(builder, row, lanes.scalar, 4))
            factor = builder.fmul(scale, of_rows)
            value = builder.sitofp(total, lanes.vector)
            before = lanes.masked_load(builder, start, mask)
            value = lanes.multiply_add(builder, value, factor, before)
            lanes.masked_store(builder, value, place, mask)

    def _products(
        self,
        builder: Any,
        numbers: list[Any],
        places: list[Any],
        distances: list[Any],
        k: Any,
    ) -> Any:
        """For each row of activations and of the matrix, a vector of partial sums.

        Args:
            builder: emits the code.
            numbers: the addresses of the bytes of each row of activations.
            places: addresses of rows of the matrix.
            distances: of the rows from each of these.
            k: bytes of a row.
        """
        size = CHUNK if self.dot else self.lanes.count
        count = len(places) * len(distances)
        zeros = [[self.lanes.integers(0)] * count for _ in numbers]
        whole = builder.sdiv(k, I64(size))

        def rows(now: list[Any]) -> list[Any]:
            return [builder.add(place, each) for place in now for each in distances]

        def step(index: Any, carried: Any) -> Any:
            *block, now = carried
            offset = builder.mul(index, I64(size))
            wide = [self._load(builder, builder.add(row, offset), size) for row in numbers]
            columns: list[list[Any]] = [[] for _ in numbers]
            for j, row in enumerate(rows(now)):
                weights = self._load(builder, row, size)
                for own, sums, values in zip(columns, block, wide, strict=True):
                    own.append(self._multiply_add(builder, values, weights, sums[j]))
            return [*columns, [builder.add(place, I64(size)) for place in now]]

        *block, ends = loop(builder, whole, [*zeros, places], step)
        done = builder.mul(whole, I64(size))
        rest = builder.sub(k, done)
        after = [builder.add(row, done) for row in numbers]
        if not self.dot:
            return self._single(builder, after, rows(ends), rest, block)
        # The last chunk: the activations are padded, the matrix is not.
        bits = builder.sub(builder.shl(I64(1), rest), I64(1))
        mask = builder.bitcast(bits, ir.VectorType(ir.IntType(1), CHUNK))

        def last(index: Any, block: Any) -> Any:
            wide = [self._load(builder, row, size) for row in after]
            columns: list[list[Any]] = [[] for _ in numbers]
            for j, row in enumerate(rows(ends)):
                weights = _masked_bytes(builder, row, mask)
                for own, sums, values in zip(columns, block, wide, strict=True):
                    own.append(self._multiply_add(builder, values, weights, sums[j]))
            return columns

        some = builder.zext(builder.icmp_signed(">", rest, I64(0)), I64)
        return loop(builder, some, block, last)

    def _load(self, builder: Any, address: Any, size: int) -> Any:
        return load(builder, address, ir.VectorType(_I8, size), 1)

    def _multiply_add(self, builder: Any, a: Any, w: Any, total: Any) -> Any:
        """`total` plus the products of unsigned bytes `a` and signed bytes `w`."""
        if not self.dot:
            wide = builder.mul(builder.zext(a, self.sums), builder.sext(w, self.sums))
            return builder.add(total, wide)
        name, kind = "llvm.x86.avx512.vpdpbusd.512", self.sums
        signature = ir.FunctionType(kind, [kind, kind, kind])
        given = [total, builder.bitcast(a, kind), builder.bitcast(w, kind)]
        return builder.call(declared(builder.module, signature, name), given)

    def _single(
        self, builder: Any, numbers: list[Any], rows: list[Any], rest: Any, block: Any
    ) -> Any:
        """`block` plus the products of the last `rest` numbers, one by one in lane 0."""
        none = self.lanes.integers(0)

        def step(index: Any, block: Any) -> Any:
            scalars = [
                builder.zext(load(builder, builder.add(row, index), _I8, 1), I32) for row in numbers
            ]
            columns: list[list[Any]] = [[] for _ in numbers]
            for j, row in enumerate(rows):
                weight = builder.sext(load(builder, builder.add(row, index), _I8, 1), I32)
                for own, sums, value in zip(columns, block, scalars, strict=True):
                    term = builder.insert_element(none, builder.mul(value, weight), I32(0))
                    own.append(builder.add(sums[j], term))
            return columns

        return loop(builder, rest, block, step)


def products_of(lanes: Lanes, features: tuple[str, ...], *, wide: bool) -> Int8Products:
    """The code of int8 products for a target.

    Args:
        lanes: vectors of float32.
        features: of the target, by LLVM's names, see `Isa.features`.
        wide: whether the target has vectors of 512 bits with masks.
    """
    return Int8Products(lanes, multiplies_bytes(features, wide=wide))


def multiplies_bytes(features: tuple[str, ...], *, wide: bool) -> bool:
    """Whether a target multiplies bytes by one instruction; as for `products_of`."""
    return wide and {"+avx512vnni", "+avx512bw"} <= set(features)


def _blocks(builder: Any, count: Any, size: int) -> Any:
    """How many blocks of `size` hold `count`."""
    return builder.sdiv(builder.add(count, I64(size - 1)), I64(size))


def _masked_bytes(builder: Any, address: Any, mask: Any) -> Any:
    """The bytes in a mask, zeros in the others."""
    kind = ir.VectorType(_I8, CHUNK)
    pointer = builder.inttoptr(address, kind.as_pointer())
    signature = ir.FunctionType(kind, [pointer.type, I32, mask.type, kind])
    function = declared(builder.module, signature, f"llvm.masked.load.v{CHUNK}i8.p0")
    return builder.call(function, [pointer, I32(1), mask, ir.Constant(kind, None)])


def _pairs_added(builder: Any, lanes: Lanes, vectors: list[Any]) -> list[Any]:
    """From each four vectors one, each block of four lanes of which has a partial sum of each."""
    for distance in (1, 2):
        low: list[int] = []
        high: list[int] = []
        for block in range(0, lanes.count, 4):
            for i in range(0, 4 // 2, distance):
                # Of both vectors: the lanes of the first half of a block, then of the second.
                for half, at in ((low, 0), (high, 2)):
                    own = [block + at + i + n for n in range(distance)]
                    half += own + [lanes.count + lane for lane in own]
        vectors = [
            _added(builder, a, b, low, high)
            for a, b in zip(vectors[::2], vectors[1::2], strict=True)
        ]
    return vectors


def _blocks_added(builder: Any, lanes: Lanes, vectors: list[Any]) -> Any:
    """One vector of all sums, from vectors whose blocks of four lanes have partial ones."""
    blocks = lanes.count // 4
    copies = blocks
    while len(vectors) > 1:
        copies //= 2
        low: list[int] = []
        high: list[int] = []
        for base in (0, blocks):
            for group in range(0, blocks, 2 * copies):
                for half, at in ((low, 0), (high, copies)):
                    half += [base + group + at + n for n in range(copies)]
        places = [[4 * block + n for block in half for n in range(4)] for half in (low, high)]
        vectors = [
            _added(builder, a, b, *places) for a, b in zip(vectors[::2], vectors[1::2], strict=True)
        ]
    return vectors[0]


def _added(builder: Any, a: Any, b: Any, low: list[int], high: list[int]) -> Any:
    """The sum of two choices of the lanes of two vectors."""
    kind = ir.VectorType(I32, len(low))
    chosen = [builder.shuffle_vector(a, b, ir.Constant(kind, lanes)) for lanes in (low, high)]
    return builder.add(*chosen)

"""Tiles of int8 products: quantized rows of activations times rows of an int8 matrix.

Weights are read as they lie, row-major. A tile keeps in registers the sums of some rows of
activations (see `int8_rows`) with some rows of the matrix, each in a vector whose lanes are partial
sums. These are transposed and added at the end: lane j has the sum of row j of the matrix. Sums are
exact, and so no way to cut a product changes a bit of a result.

A target without dot products of bytes widens weights to 16 bits and multiplies pairs: an x86
instruction (`pmaddwd`) adds the two products of a lane; elsewhere a pair is two numbers half a step
apart, whose products LLVM adds by multiply-adds of halves.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llvmlite import ir

from rnnjit.codegen import Isa
from rnnjit_numba.int8_plan import CHUNK, HEAD
from rnnjit_numba.int8_rows import Int8Rows
from rnnjit_numba.simd import I32, I64, Lanes, declared, define, emitting, load, loop
from rnnjit_numba.tiles import steps, switch

#: The numbers of rows of activations for which there is a tile, descending.
TILE_ROWS = (4, 2, 1)
_ARGUMENTS = 13
_I1, _I8, _I16 = ir.IntType(1), ir.IntType(8), ir.IntType(16)


@dataclass(frozen=True)
class Int8Products:
    """The code of int8 products for one vector unit.

    Attributes:
        rows: how rows of activations lie.
        held: vectors of partial sums that a tile keeps in registers.
        pairs: LLVM's name of the instruction that multiplies and adds pairs, if there is one.
    """

    rows: Int8Rows
    held: int
    pairs: str

    @staticmethod
    def of(isa: Isa) -> Int8Products:
        """Those of a target."""
        return Int8Products(Int8Rows.of(isa), isa.registers // 2, _pairs(isa))

    @property
    def lanes(self) -> Lanes:
        """Vectors of float32."""
        return self.rows.lanes

    @property
    def sums(self) -> Any:
        """The LLVM type of a vector of sums."""
        return self.lanes.integer

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
            builder.call(define(builder.module, name, _ARGUMENTS, body), args)

        return emitting(_ARGUMENTS, emit)

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
        lanes = self.lanes
        rows_of_a = steps(builder, a, ld_a, rows)
        numbers = [builder.add(row, I64(HEAD)) for row in rows_of_a]
        parts = self._partial_sums(builder, numbers, bool(full), k, w, ld_w, count)
        mask = None if full else lanes.mask(builder, count)
        of_rows = lanes.masked_load(builder, scales, mask)
        starts, places = steps(builder, init, ld_init, rows), steps(builder, out, ld_out, rows)
        for vectors, start, place, row in zip(parts, starts, places, rows_of_a, strict=True):
            total = _blocks_added(builder, lanes, vectors)
            if self.rows.dot:
                offsets = builder.bitcast(lanes.masked_load(builder, sums, mask), self.sums)
                total = builder.sub(total, builder.shl(offsets, lanes.integers(7)))
            scale = lanes.broadcast(builder, load(builder, row, lanes.scalar, 4))
            factor = builder.fmul(scale, of_rows)
            value = builder.sitofp(total, lanes.vector)
            before = lanes.masked_load(builder, start, mask)
            value = lanes.multiply_add(builder, value, factor, before)
            lanes.masked_store(builder, value, place, mask)

    def _partial_sums(
        self, builder: Any, numbers: list[Any], full: bool, k: Any, w: Any, ld_w: Any, count: Any
    ) -> list[list[Any]]:
        """For each row of activations vectors whose blocks of four lanes have partial sums.

        Args:
            builder: emits the code.
            numbers: the addresses of the numbers of each row of activations.
            full: whether `count` is that of all lanes.
            k: numbers of a row.
            w: the address of the first row of the matrix.
            ld_w: bytes from each to the next.
            count: how many there are.
        """
        lanes = self.lanes
        width = max(2, min(lanes.count, self.held // len(numbers)))
        last = builder.sub(count, I64(1))
        parts: list[list[Any]] = [[] for _ in numbers]
        found: list[list[Any]] = [[] for _ in numbers]
        # Few registers address the rows: one of each four, and the distances of the others.
        near = [I64(0), *(builder.mul(ld_w, I64(n)) for n in range(1, min(width, 4)))]
        distances = near if full else near[:1]
        for first in range(0, lanes.count, width):
            rows_of_w = []
            for j in range(first, first + width, len(distances)):
                # The lanes beyond the last row repeat it.
                inside = builder.icmp_signed("<", I64(j), last)
                index = builder.select(inside, I64(j), last)
                rows_of_w.append(builder.add(w, builder.mul(index, ld_w)))
            vectors = self._products(builder, numbers, rows_of_w, distances, k)
            for row, some in zip(found, vectors, strict=True):
                row += some
            if len(found[0]) >= 4:
                for part, row in zip(parts, found, strict=True):
                    part += _pairs_added(builder, lanes, row)
                    row.clear()
        return parts

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
            numbers: the addresses of the numbers of each row of activations.
            places: addresses of rows of the matrix.
            distances: of the rows from each of these.
            k: numbers of a row.
        """
        size, itemsize = self.rows.step, self.rows.itemsize
        zeros = [[self.lanes.integers(0)] * (len(places) * len(distances)) for _ in numbers]
        whole = builder.sdiv(k, I64(size))

        def rows(now: list[Any]) -> list[Any]:
            return [builder.add(place, each) for place in now for each in distances]

        def step(index: Any, carried: Any) -> Any:
            *block, now = carried
            offset = builder.mul(index, I64(size * itemsize))
            of_a = [self._activations(builder, builder.add(row, offset)) for row in numbers]
            columns = self._step(builder, of_a, rows(now), block, self._weights)
            return [*columns, [builder.add(place, I64(size)) for place in now]]

        *block, ends = loop(builder, whole, [*zeros, places], step)
        done = builder.mul(whole, I64(size))
        rest = builder.sub(k, done)
        if self.rows.dot:
            after = [builder.add(row, done) for row in numbers]
            return self._masked_step(builder, after, rows(ends), rest, block)
        padded = builder.mul(self.rows.padded(builder, k), I64(itemsize))
        behind = [builder.add(row, padded) for row in numbers]
        back = builder.sub(rest, I64(size))
        of_last = [builder.add(row, back) for row in rows(ends)]

        def last(index: Any, block: Any) -> Any:
            of_a = [self._activations(builder, row) for row in behind]
            return self._step(builder, of_a, of_last, block, self._weights)

        some = builder.and_(
            builder.icmp_signed(">", whole, I64(0)), builder.icmp_signed(">", rest, I64(0))
        )
        block = loop(builder, builder.zext(some, I64), block, last)
        short = builder.select(builder.icmp_signed("<", k, I64(size)), k, I64(0))
        return self._one_by_one(builder, numbers, rows(places), short, block)

    def _step(
        self, builder: Any, of_a: list[Any], places: list[Any], block: Any, weights: Any
    ) -> list[list[Any]]:
        """`block` plus the products of vectors of activations and what `weights` loads."""
        columns: list[list[Any]] = [[] for _ in of_a]
        for j, place in enumerate(places):
            vector = weights(builder, place)
            for own, sums, values in zip(columns, block, of_a, strict=True):
                own.append(self._multiply_add(builder, values, vector, sums[j]))
        return columns

    def _activations(self, builder: Any, address: Any) -> Any:
        return load(builder, address, ir.VectorType(self.rows.item, self.rows.step), 1)

    def _weights(self, builder: Any, address: Any) -> Any:
        found = load(builder, address, ir.VectorType(_I8, self.rows.step), 1)
        return found if self.rows.dot else builder.sext(found, ir.VectorType(_I16, self.rows.step))

    def _multiply_add(self, builder: Any, a: Any, w: Any, total: Any) -> Any:
        """`total` plus the products of vectors of activations and of weights."""
        kind = self.sums
        if self.rows.dot:
            signature = ir.FunctionType(kind, [kind, kind, kind])
            function = declared(builder.module, signature, "llvm.x86.avx512.vpdpbusd.512")
            return builder.call(
                function, [total, builder.bitcast(a, kind), builder.bitcast(w, kind)]
            )
        if self.pairs:
            signature = ir.FunctionType(kind, [a.type, a.type])
            function = declared(builder.module, signature, self.pairs)
            return builder.add(total, builder.call(function, [a, w]))
        count = self.lanes.count
        for first in (0, count):
            half = ir.Constant(ir.VectorType(I32, count), list(range(first, first + count)))
            x, y = (builder.sext(builder.shuffle_vector(v, v, half), kind) for v in (a, w))
            total = builder.add(total, builder.mul(x, y))
        return total

    def _masked_step(
        self, builder: Any, numbers: list[Any], places: list[Any], rest: Any, block: Any
    ) -> Any:
        """`block` plus a last step of `rest` bytes: the activations are padded, the matrix not."""
        bits = builder.sub(builder.shl(I64(1), rest), I64(1))
        mask = builder.bitcast(bits, ir.VectorType(_I1, CHUNK))
        zeros = ir.Constant(ir.VectorType(_I8, CHUNK), None)

        def masked(builder: Any, address: Any) -> Any:
            pointer = builder.inttoptr(address, zeros.type.as_pointer())
            signature = ir.FunctionType(zeros.type, [pointer.type, I32, mask.type, zeros.type])
            function = declared(builder.module, signature, f"llvm.masked.load.v{CHUNK}i8.p0")
            return builder.call(function, [pointer, I32(1), mask, zeros])

        def last(index: Any, block: Any) -> Any:
            of_a = [self._activations(builder, row) for row in numbers]
            return self._step(builder, of_a, places, block, masked)

        some = builder.zext(builder.icmp_signed(">", rest, I64(0)), I64)
        return loop(builder, some, block, last)

    def _one_by_one(
        self, builder: Any, numbers: list[Any], places: list[Any], k: Any, block: Any
    ) -> Any:
        """`block` plus the products of k numbers of 16 bits, one by one in lane 0."""
        none = self.lanes.integers(0)

        def step(index: Any, block: Any) -> Any:
            at = builder.mul(index, I64(2))
            scalars = [
                builder.sext(load(builder, builder.add(row, at), _I16, 2), I32) for row in numbers
            ]
            columns: list[list[Any]] = [[] for _ in numbers]
            for j, row in enumerate(places):
                weight = builder.sext(load(builder, builder.add(row, index), _I8, 1), I32)
                for own, sums, value in zip(columns, block, scalars, strict=True):
                    term = builder.insert_element(none, builder.mul(value, weight), I32(0))
                    own.append(builder.add(sums[j], term))
            return columns

        return loop(builder, k, block, step)


def _pairs(isa: Isa) -> str:
    """LLVM's name of a target's instruction that multiplies and adds pairs, or ""."""
    if not isa.triple.startswith("x86_64"):
        return ""
    if isa.vector_bytes == 64:
        return "llvm.x86.avx512.pmaddw.d.512" if "+avx512bw" in isa.features else ""
    return "llvm.x86.avx2.pmadd.wd" if isa.vector_bytes == 32 else "llvm.x86.sse2.pmadd.wd"


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

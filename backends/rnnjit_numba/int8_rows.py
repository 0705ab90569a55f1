"""Rows of activations as int8 products take them, and the code that quantizes them.

A row of k float32 numbers is quantized when a product needs it: `a = round(v * 127 / m)`, where m
is its largest absolute value, and its scale is `m / 127`. In memory it has its scale, and from
`HEAD` bytes on the numbers:

* for a target with dot products of bytes, the bytes `a + 128`, which are unsigned as the
  instruction takes them (`vpdpbusd`: Intel, "Architecture Instruction Set Extensions Programming
  Reference", AVX512_VNNI), and from the last on to a multiple of `CHUNK` zeros;
* for others, a in 16 bits, zeros up to a multiple of `CHUNK` numbers, and then, if k is a step or
  more, the last step once more: the numbers that no whole step from the start holds, behind as many
  zeros as fill it. A product reads the matrix in whole steps, too, and so not beyond its end.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llvmlite import ir

from rnnjit.codegen import Isa
from rnnjit_numba.int8_plan import CHUNK, HEAD, multiplies_bytes, step_numbers
from rnnjit_numba.simd import I32, I64, Lanes, declared, define, emitting, loop

_ARGUMENTS = 3
_I8, _I16 = ir.IntType(8), ir.IntType(16)
#: The bits of infinity: those of NaN are larger, without the sign.
_INFINITY = 0x7F800000
#: Added to a small number it leaves the number, rounded to the nearest, ties to even, in the low
#: bits: 1.5 * 2^23.
_ROUND = 12582912.0


@dataclass(frozen=True)
class Int8Rows:
    """How quantized rows lie in memory for one vector unit.

    Attributes:
        lanes: vectors of float32.
        dot: whether the target has dot products of bytes.
        step: numbers of a row that are multiplied at a time.
    """

    lanes: Lanes
    dot: bool
    step: int

    @staticmethod
    def of(isa: Isa) -> Int8Rows:
        """Those of a target."""
        lanes = Lanes(32, isa.lanes(4), isa.fma)
        return Int8Rows(lanes, multiplies_bytes(isa), step_numbers(isa))

    @property
    def item(self) -> Any:
        """The LLVM type of a number."""
        return _I8 if self.dot else _I16

    @property
    def itemsize(self) -> int:
        """Bytes of a number."""
        return 1 if self.dot else 2

    def padded(self, builder: Any, k: Any) -> Any:
        """Numbers of a row with its padding."""
        return builder.mul(_blocks(builder, k, CHUNK), I64(CHUNK))

    def quantize(self) -> Any:
        """Intrinsic `quantize(source, k, to)`: quantize the k numbers at `source`, see above.

        A row with a NaN or an infinity has scale NaN. One of zeros, or of numbers so small that
        `127 / m` overflows, has scale 0 and zeros.
        """
        name = f"rnnjit_quantize_{self.lanes.suffix}"

        def emit(builder: Any, *args: Any) -> None:
            builder.call(define(builder.module, name, _ARGUMENTS, self._quantize), args)

        return emitting(_ARGUMENTS, emit)

    def _quantize(self, builder: Any, source: Any, k: Any, to: Any) -> None:
        lanes = self.lanes
        largest = self._largest(builder, source, k)
        scale, factor = self._scales(builder, largest)
        builder.store(scale, builder.inttoptr(to, lanes.scalar.as_pointer()), align=4)
        factors = lanes.broadcast(builder, factor)

        def write(first: Any, mask: Any, at: Any) -> None:
            place = builder.add(source, builder.mul(first, I64(lanes.itemsize)))
            kept = self._rounded(builder, lanes.masked_load(builder, place, mask), factors)
            if mask is not None:
                kept = builder.select(mask, kept, ir.Constant(kept.type, None))
            at = builder.add(builder.add(to, I64(HEAD)), builder.mul(at, I64(self.itemsize)))
            builder.store(kept, builder.inttoptr(at, kept.type.as_pointer()), align=1)

        padded = self.padded(builder, k)

        def from_the_start(first: Any, mask: Any, found: Any) -> Any:
            write(first, mask, first)
            return found

        self._vectors(builder, k, padded, [], from_the_start)
        if self.dot:
            return
        start = builder.sub(k, I64(self.step))
        with builder.if_then(builder.icmp_signed(">=", start, I64(0))):
            zeros = builder.sub(I64(self.step), builder.srem(k, I64(self.step)))
            for first in range(0, self.step, lanes.count):
                before = lanes.mask(builder, builder.sub(zeros, I64(first)))
                mask = builder.not_(before)
                at = builder.add(padded, I64(first))
                write(builder.add(start, I64(first)), mask, at)

    def _vectors(self, builder: Any, k: Any, end: Any, block: Any, step: Any) -> Any:
        """`block` after `step(first, mask, block)` for each vector of numbers up to `end`.

        The mask is that of the first k numbers, None for whole vectors.
        """
        lanes = self.lanes
        size = I64(lanes.count)
        whole = builder.sdiv(k, size)
        behind = builder.sub(_blocks(builder, end, lanes.count), whole)

        def of_whole(index: Any, block: Any) -> Any:
            return step(builder.mul(index, size), None, block)

        def of_others(index: Any, block: Any) -> Any:
            first = builder.mul(builder.add(whole, index), size)
            return step(first, lanes.mask(builder, builder.sub(k, first)), block)

        return loop(builder, behind, loop(builder, whole, block, of_whole), of_others)

    def _largest(self, builder: Any, source: Any, k: Any) -> Any:
        """The bits of the largest absolute value of k numbers."""
        lanes, magnitudes = self.lanes, self.lanes.integers(0x7FFFFFFF)

        def larger(first: Any, mask: Any, found: Any) -> Any:
            at = builder.add(source, builder.mul(first, I64(lanes.itemsize)))
            values = builder.bitcast(lanes.masked_load(builder, at, mask), lanes.integer)
            bits = builder.and_(values, magnitudes)
            above = builder.icmp_signed(">", bits, found[0][0])
            return [[builder.select(above, bits, found[0][0])]]

        ((largest,),) = self._vectors(builder, k, k, [[lanes.integers(0)]], larger)
        signature = ir.FunctionType(I32, [lanes.integer])
        name = f"llvm.vector.reduce.smax.v{lanes.count}i32"
        return builder.call(declared(builder.module, signature, name), [largest])

    def _scales(self, builder: Any, largest: Any) -> tuple[Any, Any]:
        """The scale of a row, and by what its numbers are multiplied."""
        scalar = self.lanes.scalar
        m, zero, limit = builder.bitcast(largest, scalar), scalar(0.0), scalar(127.0)
        factor = builder.fdiv(limit, m)
        finite = builder.icmp_signed("<", largest, I32(_INFINITY))
        above_zero = builder.fcmp_ordered("<", factor, scalar(float("inf")))
        usable = builder.and_(finite, above_zero)
        scale = builder.select(usable, builder.fdiv(m, limit), zero)
        scale = builder.select(finite, scale, scalar(float("nan")))
        return scale, builder.select(usable, factor, zero)

    def _rounded(self, builder: Any, values: Any, factors: Any) -> Any:
        """A vector of numbers as they lie in memory."""
        lanes = self.lanes
        scaled = builder.fmul(values, factors)
        for order, bound in (("<", 127.0), (">", -127.0)):
            # A NaN, which is in no order, becomes the bound: its row's scale is NaN.
            edge = lanes.constant(bound)
            scaled = builder.select(builder.fcmp_ordered(order, scaled, edge), scaled, edge)
        bits = builder.bitcast(builder.fadd(scaled, lanes.constant(_ROUND)), lanes.integer)
        small = builder.trunc(bits, ir.VectorType(self.item, lanes.count))
        if not self.dot:
            return small
        return builder.xor(small, ir.Constant(small.type, [0x80] * lanes.count))


def _blocks(builder: Any, count: Any, size: int) -> Any:
    """How many blocks of `size` hold `count`."""
    return builder.sdiv(builder.add(count, I64(size - 1)), I64(size))

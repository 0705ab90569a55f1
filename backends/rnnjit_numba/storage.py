"""How the numbers of tensors lie in memory, and how products read them.

Kernels compute in float32 or float64. Tensors of these dtypes lie in memory as they are computed
with (`Storage`). Those of bfloat16 and float16 take half the memory (`BFloat16`, `Float16`): x,
weights, the first state, what is saved for the backward pass, and dz. Everything else is float32:
pre-activations, sums, the other states and the gradients of all states. A number is rounded once,
to the nearest, ties to even, when it is stored.

A product multiplies `terms` adjacent elements at a time. Its packed operand has, in each lane, so
many adjacent elements of one column; those of bfloat16 are pairs, as the processor's dot product
takes them (`vdpbf16ps`: Intel, "Architecture Instruction Set Extensions Programming Reference",
AVX512_BF16). Tile registers take blocks of them, see `amx`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from llvmlite import ir

from rnnjit_numba.simd import I32, I64, VOID, BFloatType, Lanes, declared, load

_I16 = ir.IntType(16)


@dataclass(frozen=True)
class Storage:
    """Numbers that lie in memory as they are computed with.

    Attributes:
        lanes: the vectors that they are computed with.
    """

    lanes: Lanes

    def joined(self, vectors: int) -> Storage:
        """The same, computed with in vectors as wide as some of these."""
        return replace(self, lanes=self.lanes.joined(vectors))

    @property
    def itemsize(self) -> int:
        """Bytes of an element."""
        return self.lanes.itemsize

    @property
    def vector_bytes(self) -> int:
        """Bytes of as many elements as a vector has."""
        return self.itemsize * self.lanes.count

    @property
    def terms(self) -> int:
        """Adjacent elements that a product multiplies at a time."""
        return 1

    @property
    def packed_bytes(self) -> int:
        """Bytes of a packed operand for each term of a column vector."""
        return self.lanes.vector_bytes // self.terms

    @property
    def suffix(self) -> str:
        """Distinguishes the names of functions for this storage."""
        return self.lanes.suffix

    @property
    def packed(self) -> Any:
        """The LLVM type of a vector of a product's packed operand."""
        return self.lanes.vector

    def masked_load(self, builder: Any, address: Any, mask: Any) -> Any:
        """The lanes in `mask` of the elements at an address, zero in the others; all if None."""
        return self.lanes.masked_load(builder, address, mask)

    def masked_store(self, builder: Any, value: Any, address: Any, mask: Any) -> None:
        """Write the lanes in `mask` of a vector to an address; all if it is None."""
        self.lanes.masked_store(builder, value, address, mask)

    def load_terms(self, builder: Any, address: Any) -> Any:
        """The scalar operand of a product: `terms` elements at an address."""
        return load(builder, address, self.lanes.scalar, self.itemsize)

    def broadcast(self, builder: Any, terms: Any) -> Any:
        """The scalar operand in all lanes."""
        return self.lanes.broadcast(builder, terms)

    def load_packed(self, builder: Any, address: Any) -> Any:
        """A vector of a packed operand."""
        return self.lanes.load(builder, address)

    def multiply_add(self, builder: Any, a: Any, b: Any, c: Any) -> Any:
        """C plus the products of the terms in each lane of `a` and `b`."""
        return self.lanes.multiply_add(builder, a, b, c)

    def row_mask(self, builder: Any, count: Any) -> Any:
        """The mask of the first `count` elements in a packed vector of elements of a row."""
        return self.lanes.mask(builder, count)

    def load_row(self, builder: Any, address: Any, mask: Any) -> Any:
        """A packed vector of the elements in a mask that lie in a row, zeros in the others."""
        return self.lanes.masked_load(builder, address, mask)

    def load_rows(self, builder: Any, address: Any, following: Any, mask: Any) -> Any:
        """A packed vector of elements that lie in a column of `terms` rows.

        Args:
            builder: emits the code.
            address: of the first row.
            following: of the next row, where it exists, else of the first.
            mask: the lanes to load of the first row, and of the next one.
        """
        return self.lanes.masked_load(builder, address, mask[0])


@dataclass(frozen=True)
class _TwoBytes(Storage):
    """Numbers of two bytes, computed with in float32.

    Attributes:
        lanes: vectors of float32.
        masks: whether the target masks loads and stores of two bytes.
    """

    masks: bool

    @property
    def itemsize(self) -> int:
        """Bytes of an element."""
        return 2

    @cached_property
    def _halves(self) -> Any:
        return ir.VectorType(_I16, self.lanes.count)

    def _load_halves(self, builder: Any, address: Any, mask: Any, kind: Any) -> Any:
        """The elements in a mask, as integers of two bytes; zeros in the others."""
        pointer = builder.inttoptr(address, kind.as_pointer())
        if mask is None:
            return builder.load(pointer, align=2)
        zeros = ir.Constant(kind, None)
        signature = ir.FunctionType(kind, [pointer.type, I32, mask.type, kind])
        name = f"llvm.masked.load.v{kind.count}i16.p0"

        def masked() -> Any:
            function = declared(builder.module, signature, name)
            return builder.call(function, [pointer, I32(2), mask, zeros])

        if self.masks:
            return masked()
        # Without such masks LLVM makes a branch for each element.
        with builder.if_else(_all_of(builder, mask)) as (then, otherwise):
            with then:
                whole, after_whole = builder.load(pointer, align=2), builder.block
            with otherwise:
                part = masked()
                after_part = builder.block
        found = builder.phi(kind)
        found.add_incoming(whole, after_whole)
        found.add_incoming(part, after_part)
        return found

    def _store_halves(self, builder: Any, halves: Any, address: Any, mask: Any) -> None:
        """Write the elements in a mask, given as integers of two bytes."""
        kind = self._halves
        pointer = builder.inttoptr(address, kind.as_pointer())
        if mask is None:
            builder.store(halves, pointer, align=2)
            return
        signature = ir.FunctionType(VOID, [kind, pointer.type, I32, mask.type])
        name = f"llvm.masked.store.v{kind.count}i16.p0"

        def store() -> None:
            function = declared(builder.module, signature, name)
            builder.call(function, [halves, pointer, I32(2), mask])

        if self.masks:
            store()
            return
        with builder.if_else(_all_of(builder, mask)) as (then, otherwise):
            with then:
                builder.store(halves, pointer, align=2)
            with otherwise:
                store()


@dataclass(frozen=True)
class BFloat16(_TwoBytes):
    """Numbers of bfloat16, computed with in float32.

    Attributes:
        lanes: vectors of float32.
        masks: whether the target masks loads and stores of two bytes.
        dot: whether the target adds the products of pairs by one instruction. It takes subnormal
            numbers for zeros. Else a pair is two multiply-adds, of the first element and then of
            the second.
        amx: which tile registers multiply blocks of pairs, see `Isa.amx`.
    """

    dot: bool
    amx: str = ""

    @property
    def terms(self) -> int:
        """A pair."""
        return 2

    @property
    def suffix(self) -> str:
        """As `Storage.suffix`."""
        return f"v{self.lanes.count}bf16"

    @property
    def packed(self) -> Any:
        """Pairs as integers: the first element in the low half."""
        return self.lanes.integer

    def masked_load(self, builder: Any, address: Any, mask: Any) -> Any:
        """As `Storage.masked_load`."""
        found = self._load_halves(builder, address, mask, self._halves)
        wide = builder.shl(builder.zext(found, self.lanes.integer), self.lanes.integers(16))
        return builder.bitcast(wide, self.lanes.vector)

    def masked_store(self, builder: Any, value: Any, address: Any, mask: Any) -> None:
        """As `Storage.masked_store`, rounded to the nearest, ties to even; NaN stays NaN."""
        integers, lanes = self.lanes.integers, self.lanes
        bits = builder.bitcast(value, lanes.integer)
        high = builder.lshr(bits, integers(16))
        odd = builder.and_(high, integers(1))
        rounded = builder.add(bits, builder.add(odd, integers(0x7FFF)))
        nan = builder.or_(high, integers(0x40))
        unordered = builder.fcmp_unordered("uno", value, value)
        found = builder.select(unordered, nan, builder.lshr(rounded, integers(16)))
        halves = builder.trunc(found, self._halves)
        self._store_halves(builder, halves, address, mask)

    def load_terms(self, builder: Any, address: Any) -> Any:
        """A pair."""
        return load(builder, address, I32, 2)

    def load_last_term(self, builder: Any, address: Any) -> Any:
        """A pair whose second element is zero: the last of an odd number of elements."""
        return builder.zext(load(builder, address, _I16, 2), I32)

    def broadcast(self, builder: Any, terms: Any) -> Any:
        """The pair in all lanes."""
        undefined = ir.Constant(self.packed, ir.Undefined)
        single = builder.insert_element(undefined, terms, I32(0))
        zeros = ir.Constant(ir.VectorType(I32, self.lanes.count), [0] * self.lanes.count)
        return builder.shuffle_vector(single, undefined, zeros)

    def load_packed(self, builder: Any, address: Any) -> Any:
        """Pairs."""
        return load(builder, address, self.packed, 4)

    def multiply_add(self, builder: Any, a: Any, b: Any, c: Any) -> Any:
        """As `Storage.multiply_add`."""
        if self.dot:
            kind = ir.VectorType(BFloatType(), 2 * self.lanes.count)
            signature = ir.FunctionType(self.lanes.vector, [self.lanes.vector, kind, kind])
            name = f"llvm.x86.avx512bf16.dpbf16ps.{32 * self.lanes.count}"
            pairs = [builder.bitcast(value, kind) for value in (a, b)]
            return builder.call(declared(builder.module, signature, name), [c, *pairs])
        for part in (self._first, self._second):
            c = self.lanes.multiply_add(builder, part(builder, a), part(builder, b), c)
        return c

    def row_mask(self, builder: Any, count: Any) -> Any:
        """As `Storage.row_mask`."""
        return _first_of(builder, count, 2 * self.lanes.count)

    def load_row(self, builder: Any, address: Any, mask: Any) -> Any:
        """As `Storage.load_row`."""
        kind = ir.VectorType(_I16, 2 * self.lanes.count)
        return builder.bitcast(self._load_halves(builder, address, mask, kind), self.packed)

    def load_rows(self, builder: Any, address: Any, following: Any, mask: Any) -> Any:
        """As `Storage.load_rows`."""
        first, second = (
            builder.zext(self._load_halves(builder, place, held, self._halves), self.packed)
            for place, held in zip((address, following), mask, strict=True)
        )
        return builder.or_(first, builder.shl(second, self.lanes.integers(16)))

    def _first(self, builder: Any, pairs: Any) -> Any:
        wide = builder.shl(pairs, self.lanes.integers(16))
        return builder.bitcast(wide, self.lanes.vector)

    def _second(self, builder: Any, pairs: Any) -> Any:
        wide = builder.and_(pairs, self.lanes.integers(0xFFFF0000))
        return builder.bitcast(wide, self.lanes.vector)


@dataclass(frozen=True)
class Float16(_TwoBytes):
    """Numbers of float16, computed with in float32; a packed operand is float32, too.

    Attributes:
        lanes: vectors of float32.
        masks: whether the target masks loads and stores of two bytes.
        converts: whether the target has instructions that convert. Else integers do it.
    """

    converts: bool

    @property
    def suffix(self) -> str:
        """As `Storage.suffix`."""
        return f"v{self.lanes.count}f16"

    def masked_load(self, builder: Any, address: Any, mask: Any) -> Any:
        """As `Storage.masked_load`."""
        return self._widened(builder, self._load_halves(builder, address, mask, self._halves))

    def masked_store(self, builder: Any, value: Any, address: Any, mask: Any) -> None:
        """As `Storage.masked_store`, rounded to the nearest, ties to even."""
        self._store_halves(builder, self._narrowed(builder, value), address, mask)

    def load_terms(self, builder: Any, address: Any) -> Any:
        """The bits of an element."""
        return load(builder, address, _I16, 2)

    def broadcast(self, builder: Any, terms: Any) -> Any:
        """As `Storage.broadcast`."""
        undefined = ir.Constant(self._halves, ir.Undefined)
        single = builder.insert_element(undefined, terms, I32(0))
        zeros = ir.Constant(ir.VectorType(I32, self.lanes.count), None)
        return self._widened(builder, builder.shuffle_vector(single, undefined, zeros))

    def load_row(self, builder: Any, address: Any, mask: Any) -> Any:
        """As `Storage.load_row`."""
        return self.masked_load(builder, address, mask)

    def load_rows(self, builder: Any, address: Any, following: Any, mask: Any) -> Any:
        """As `Storage.load_rows`."""
        return self.masked_load(builder, address, mask[0])

    def _widened(self, builder: Any, halves: Any) -> Any:
        """Float32 of the bits of float16."""
        lanes = self.lanes
        if self.converts:
            kind = ir.VectorType(ir.HalfType(), lanes.count)
            return builder.fpext(builder.bitcast(halves, kind), lanes.vector)
        integers, bits = lanes.integers, builder.zext(halves, lanes.integer)
        sign = builder.shl(builder.and_(bits, integers(0x8000)), integers(16))
        size = builder.and_(bits, integers(0x7FFF))
        # The exponent's bias is 15 of float16 and 127 of float32; infinities and NaN have all bits.
        normal = builder.add(builder.shl(size, integers(13)), integers((127 - 15) << 23))
        special = builder.icmp_unsigned(">=", size, integers(0x7C00))
        normal = builder.select(special, builder.or_(normal, integers(0x7F800000)), normal)
        count = builder.uitofp(size, lanes.vector)
        small = builder.bitcast(builder.fmul(count, lanes.constant(2.0**-24)), lanes.integer)
        subnormal = builder.icmp_unsigned("<", size, integers(0x0400))
        found = builder.select(subnormal, small, normal)
        return builder.bitcast(builder.or_(found, sign), lanes.vector)

    def _narrowed(self, builder: Any, value: Any) -> Any:
        """The bits of float16 nearest to float32."""
        lanes, integers = self.lanes, self.lanes.integers
        if self.converts:
            kind = ir.VectorType(ir.HalfType(), lanes.count)
            return builder.bitcast(builder.fptrunc(value, kind), self._halves)
        bits = builder.bitcast(value, lanes.integer)
        sign = builder.and_(builder.lshr(bits, integers(16)), integers(0x8000))
        size = builder.and_(bits, integers(0x7FFFFFFF))
        odd = builder.and_(builder.lshr(size, integers(13)), integers(1))
        carried = builder.add(size, builder.add(odd, integers(0xFFF - ((127 - 15) << 23))))
        normal = builder.lshr(carried, integers(13))
        # Beside 0.5 the last bit of float32 is that of a subnormal float16: the sum rounds.
        half = lanes.constant(0.5)
        beside = builder.fadd(builder.bitcast(size, lanes.vector), half)
        small = builder.sub(builder.bitcast(beside, lanes.integer), integers(0x3F000000))
        subnormal = builder.icmp_unsigned("<", size, integers((127 - 14) << 23))
        found = builder.select(subnormal, small, normal)
        over = builder.icmp_unsigned(">=", size, integers((127 + 16) << 23))
        found = builder.select(over, integers(0x7C00), found)
        nan = builder.icmp_unsigned(">", size, integers(0x7F800000))
        found = builder.select(nan, integers(0x7E00), found)
        return builder.trunc(builder.or_(found, sign), self._halves)


def _all_of(builder: Any, mask: Any) -> Any:
    """Whether a mask has all lanes."""
    kind = ir.IntType(mask.type.count)
    return builder.icmp_unsigned("==", builder.bitcast(mask, kind), ir.Constant(kind, -1))


def _first_of(builder: Any, count: Any, lanes: int) -> Any:
    """The mask of the first `count` of some lanes of two bytes."""
    kind = ir.VectorType(_I16, lanes)
    low = builder.select(builder.icmp_signed("<", count, I64(0)), I64(0), count)
    held = builder.select(builder.icmp_signed("<", low, I64(lanes)), low, I64(lanes))
    undefined = ir.Constant(kind, ir.Undefined)
    single = builder.insert_element(undefined, builder.trunc(held, _I16), I32(0))
    zeros = ir.Constant(ir.VectorType(I32, lanes), [0] * lanes)
    counts = builder.shuffle_vector(single, undefined, zeros)
    return builder.icmp_signed("<", ir.Constant(kind, list(range(lanes))), counts)


def storage_of(
    lanes: Lanes, dtype: torch.dtype, features: tuple[str, ...], *, wide: bool, amx: str = ""
) -> Storage:
    """The storage of tensors of a dtype.

    Args:
        lanes: the vectors that they are computed with.
        dtype: of the tensors.
        features: of the target, by LLVM's names, see `Isa.features`.
        wide: whether the target has vectors of 512 bits with masks.
        amx: as `Isa.amx`.
    """
    masks = wide and "+avx512bw" in features
    if dtype is torch.float16:
        return Float16(lanes, masks, converts=converts_halves(lanes, features))
    if dtype is not torch.bfloat16:
        return Storage(lanes)
    return BFloat16(lanes, masks, multiplies_pairs(features, wide=wide), amx)


def converts_halves(lanes: Lanes, features: tuple[str, ...]) -> bool:
    """Whether a target has instructions that convert float16; those of x86 come with AVX."""
    of_x86 = any(feature[1:] == "sse2" for feature in features)
    return not of_x86 or (lanes.count > 4 and "+f16c" in features)


def multiplies_pairs(features: tuple[str, ...], *, wide: bool) -> bool:
    """Whether a target multiplies pairs of bfloat16 by one instruction; as for `storage_of`."""
    return wide and "+avx512bf16" in features

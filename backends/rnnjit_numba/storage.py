"""How the numbers of tensors lie in memory, and how products read them.

Kernels compute in float32 or float64. Tensors of these dtypes lie in memory as they are computed
with (`Storage`). Those of bfloat16 take half the memory (`BFloat16`): x, weights, the first state,
what is saved for the backward pass, and dz. Everything else is float32: pre-activations, sums, the
other states and the gradients of all states. A number is rounded once, to the nearest, ties to
even, when it is stored.

A product multiplies `terms` adjacent elements at a time. Its packed operand has, in each lane, so
many adjacent elements of one column; those of bfloat16 are pairs, as the processor's dot product
takes them (`vdpbf16ps`: Intel, "Architecture Instruction Set Extensions Programming Reference",
AVX512_BF16). Tile registers take blocks of them, see `amx`.
"""

from __future__ import annotations

from dataclasses import dataclass
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
        """The lanes in `mask` of the elements at an address, zero in the others."""
        return self.lanes.masked_load(builder, address, mask)

    def masked_store(self, builder: Any, value: Any, address: Any, mask: Any) -> None:
        """Write the lanes in `mask` of a vector to an address."""
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
class BFloat16(Storage):
    """Numbers of bfloat16, computed with in float32.

    Attributes:
        lanes: vectors of float32.
        dot: whether the target adds the products of pairs by one instruction. It takes subnormal
            numbers for zeros. Else a pair is two multiply-adds, of the first element and then of
            the second.
        masks: whether the target masks loads and stores of two bytes.
        amx: which tile registers multiply blocks of pairs, see `Isa.amx`.
    """

    dot: bool
    masks: bool
    amx: str = ""

    @property
    def itemsize(self) -> int:
        """Bytes of an element."""
        return 2

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

    @cached_property
    def _halves(self) -> Any:
        return ir.VectorType(_I16, self.lanes.count)

    def masked_load(self, builder: Any, address: Any, mask: Any) -> Any:
        """As `Storage.masked_load`."""
        found = self._masked_load(builder, address, mask, self._halves)
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
        kind = self._halves
        pointer = builder.inttoptr(address, kind.as_pointer())
        signature = ir.FunctionType(VOID, [kind, pointer.type, I32, mask.type])
        name = f"llvm.masked.store.v{lanes.count}i16.p0"

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
        return builder.bitcast(self._masked_load(builder, address, mask, kind), self.packed)

    def load_rows(self, builder: Any, address: Any, following: Any, mask: Any) -> Any:
        """As `Storage.load_rows`."""
        first, second = (
            builder.zext(self._masked_load(builder, place, held, self._halves), self.packed)
            for place, held in zip((address, following), mask, strict=True)
        )
        return builder.or_(first, builder.shl(second, self.lanes.integers(16)))

    def _first(self, builder: Any, pairs: Any) -> Any:
        wide = builder.shl(pairs, self.lanes.integers(16))
        return builder.bitcast(wide, self.lanes.vector)

    def _second(self, builder: Any, pairs: Any) -> Any:
        wide = builder.and_(pairs, self.lanes.integers(0xFFFF0000))
        return builder.bitcast(wide, self.lanes.vector)

    def _masked_load(self, builder: Any, address: Any, mask: Any, kind: Any) -> Any:
        """The elements in a mask, as integers of two bytes; zeros in the others."""
        pointer = builder.inttoptr(address, kind.as_pointer())
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
    if dtype is not torch.bfloat16:
        return Storage(lanes)
    dot = multiplies_pairs(features, wide=wide)
    return BFloat16(lanes, dot, masks=wide and "+avx512bw" in features, amx=amx)


def multiplies_pairs(features: tuple[str, ...], *, wide: bool) -> bool:
    """Whether a target multiplies pairs of bfloat16 by one instruction; as for `storage_of`."""
    return wide and "+avx512bf16" in features

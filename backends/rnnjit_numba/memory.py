"""Intrinsics that move data between layouts and between threads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from llvmlite import ir
from numba import types
from numba.extending import intrinsic, lower_getattr_generic, models, register_model

from rnnjit_numba.simd import (
    I32,
    I64,
    Lanes,
    declared,
    define,
    either,
    emitting,
    load,
    loop,
    whole_or_masked,
)
from rnnjit_numba.storage import Storage


def read_int() -> Any:
    """Intrinsic `read_int(address)`: the int64 at an address."""
    return emitting(1, lambda builder, address: load(builder, address, I64, 8), returns=True)


def write_int() -> Any:
    """Intrinsic `write_int(address, value)`: set the int64 at an address."""

    def emit(builder: Any, address: Any, value: Any) -> None:
        builder.store(value, builder.inttoptr(address, I64.as_pointer()), align=8)

    return emitting(2, emit)


def minimum() -> Any:
    """Intrinsic `minimum(a, b)`: the smaller of two int64."""
    return emitting(
        2, lambda builder, a, b: builder.select(builder.icmp_signed("<", a, b), a, b), returns=True
    )


def maximum() -> Any:
    """Intrinsic `maximum(a, b)`: the larger of two int64."""
    return emitting(
        2, lambda builder, a, b: builder.select(builder.icmp_signed(">", a, b), a, b), returns=True
    )


def first_from() -> Any:
    """Intrinsic `first_from(low, stride, bound)`: the first of low, low + stride, ... >= bound."""

    def emit(builder: Any, low: Any, stride: Any, bound: Any) -> Any:
        ahead = builder.sub(bound, low)
        rounded = builder.sub(builder.add(ahead, stride), I64(1))
        steps = builder.sdiv(rounded, stride)
        reached = builder.add(low, builder.mul(steps, stride))
        return builder.select(builder.icmp_signed(">", ahead, I64(0)), reached, low)

    return emitting(3, emit, returns=True)


def unpack_arguments(kind: type) -> Any:
    """Intrinsic `unpack(address)`: the named tuple `kind` of int64 fields at an address.

    The fields that the function uses are read where `unpack` is called, and no others.
    """

    def typer(context: Any, address: Any) -> Any:
        result = ArgumentBlock(kind)

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            reads, after = (builder.append_basic_block(name) for name in ("arguments", "body"))
            builder.branch(reads)
            ir.IRBuilder(reads).branch(after)
            builder.position_at_end(after)
            _READS[builder.function] = _Reads(args[0], reads, {})
            return args[0]

        return result(types.int64), codegen

    return intrinsic(typer)


class ArgumentBlock(types.NamedUniTuple):  # type: ignore[misc]  # numba is not typed
    """numba's type of what `unpack` returns: a named tuple, of which a function has the address."""

    def __init__(self, kind: Any) -> None:
        super().__init__(types.int64, len(kind._fields), kind)


@register_model(ArgumentBlock)
class _ArgumentBlockModel(models.PrimitiveModel):  # type: ignore[misc]  # numba is not typed
    """Its value is the address."""

    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, I64)


class _Reads(NamedTuple):
    """What a function reads of its arguments: from where, in which basic block, and by index."""

    address: Any
    block: Any
    values: dict[int, Any]


#: By the LLVM function that is being lowered.
_READS: WeakKeyDictionary[Any, _Reads] = WeakKeyDictionary()


@lower_getattr_generic(ArgumentBlock)  # type: ignore[untyped-decorator]  # numba is not typed
def _argument(context: Any, builder: Any, kind: Any, value: Any, name: str) -> Any:
    """A field, read in the basic block that `unpack` has made."""
    address, block, values = _READS[builder.function]
    index = kind.fields.index(name)
    if index not in values:
        inside = ir.IRBuilder(block)
        inside.position_before(block.terminator)
        values[index] = load(inside, inside.add(address, I64(8 * index)), I64, 8)
    return values[index]


def write_arguments(kind: type, fields: tuple[str, ...]) -> Any:
    """Intrinsic `write(address, ...)`: set some fields of the named tuple `kind` at an address."""
    indices = [kind._fields.index(field) for field in fields]  # type: ignore[attr-defined]  # a NamedTuple class

    def emit(builder: Any, address: Any, *values: Any) -> None:
        for index, value in zip(indices, values, strict=True):
            place = builder.add(address, I64(8 * index))
            builder.store(value, builder.inttoptr(place, I64.as_pointer()), align=8)

    return emitting(1 + len(fields), emit)


def copy(source: Storage, target: Storage) -> Any:
    """Intrinsic `copy(to, from, count, width)`: `count` lanes, then zeros up to `width` lanes.

    `from` may be 0, which reads as zeros.

    Args:
        source: how the numbers lie that are read.
        target: how they are written.
    """
    lanes = source.lanes

    def emit(builder: Any, to: Any, start: Any, count: Any, width: Any) -> None:
        def read() -> list[Any]:
            def code(whole: bool) -> list[Any]:
                mask = None if whole else lanes.mask(builder, count)
                return [source.masked_load(builder, start, mask)]

            whole = lanes.are_whole(builder, count)
            return either(builder, whole, lambda: code(True), lambda: code(False))

        (value,) = _if_given(builder, start, read, lanes)

        def write(whole: bool) -> None:
            mask = None if whole else lanes.mask(builder, width)
            target.masked_store(builder, value, to, mask)

        whole_or_masked(builder, lanes.are_whole(builder, width), write)

    return emitting(4, emit)


def pack_rows(storage: Storage) -> Any:
    """Intrinsic `pack_rows(to, source, ld, rows, count, width)`: a packed vector of a few rows.

    It reads `count` elements of each of `Storage.terms` rows, `ld` bytes apart, or of `rows` rows
    if these are fewer, and writes `width` groups of terms, zeros where nothing was read.
    """
    lanes = storage.lanes
    packed = Storage(lanes)

    def emit(
        builder: Any, to: Any, source: Any, ld: Any, rows: Any, count: Any, width: Any
    ) -> None:
        present = builder.icmp_signed(">", rows, I64(storage.terms - 1))
        following = builder.select(present, builder.add(source, ld), source)
        enough = builder.and_(lanes.are_whole(builder, count), lanes.are_whole(builder, width))

        def code(whole: bool) -> None:
            first = second = target = None
            if not whole:
                first, target = lanes.mask(builder, count), lanes.mask(builder, width)
                second = builder.select(present, first, ir.Constant(first.type, None))
            value = storage.load_rows(builder, source, following, (first, second))
            packed.masked_store(builder, builder.bitcast(value, lanes.vector), to, target)

        whole_or_masked(builder, builder.and_(enough, present), code)

    return emitting(6, emit)


def add(first: Storage, second: Storage, target: Storage) -> Any:
    """Intrinsic `add(to, a, b, count)`: `to = a + b` on `count` lanes; `b` may be 0 for zeros.

    Args:
        first: how `a` lies in memory.
        second: the same of `b`.
        target: the same of `to`.
    """
    lanes = target.lanes

    def emit(builder: Any, to: Any, a: Any, b: Any, count: Any) -> None:
        def code(whole: bool) -> None:
            mask = None if whole else lanes.mask(builder, count)
            (other,) = _if_given(builder, b, lambda: [second.masked_load(builder, b, mask)], lanes)
            total = builder.fadd(first.masked_load(builder, a, mask), other)
            target.masked_store(builder, total, to, mask)

        whole_or_masked(builder, lanes.are_whole(builder, count), code)

    return emitting(4, emit)


def _if_given(builder: Any, address: Any, read: Callable[[], list[Any]], lanes: Lanes) -> list[Any]:
    """What `read` loads from an address, or a vector of zeros if the address is 0.

    Some processors take hundreds of cycles to load no lanes from an invalid address.
    """
    present = builder.icmp_signed("!=", address, I64(0))
    return either(builder, present, read, lambda: [lanes.constant(0.0)])


def transpose(storage: Storage) -> Any:
    """Intrinsic `transpose(to, source, ld, rows, columns)`: one block of as many rows as lanes.

    Reads `rows x columns` elements of a row-major matrix, its rows `ld` bytes apart, and writes as
    many packed vectors as there are lanes: vector k holds the columns from k * terms on, and zeros
    beyond the block.
    """
    lanes, name = storage.lanes, f"rnnjit_transpose_{storage.suffix}"

    def body(builder: Any, to: Any, source: Any, ld: Any, rows: Any, columns: Any) -> None:
        mask = storage.row_mask(builder, columns)
        none = ir.Constant(mask.type, None)
        block = []
        for row in range(lanes.count):
            inside = builder.icmp_signed(">", rows, I64(row))
            address = builder.add(source, builder.mul(ld, I64(row)))
            block.append(storage.load_row(builder, address, builder.select(inside, mask, none)))
        block = transposed(lanes, builder, block)
        for k, value in enumerate(block):
            value = builder.bitcast(value, lanes.vector)
            lanes.store(builder, value, builder.add(to, I64(k * lanes.vector_bytes)))

    def emit(builder: Any, *args: Any) -> None:
        builder.call(define(builder.module, name, 5, body), args)

    return emitting(5, emit)


def transposed(lanes: Lanes, builder: Any, block: list[Any]) -> list[Any]:
    """The columns of a square block of vectors, given its rows.

    By Eklundh's exchange of sub-blocks ("A fast computer method for matrix transposing", IEEE
    Trans. Comp. C-21, 1972).
    """
    block = list(block)
    distance = 1
    while distance < lanes.count:
        for row in range(lanes.count):
            if not row & distance:
                pair = block[row], block[row + distance]
                block[row], block[row + distance] = _exchange(builder, lanes, *pair, distance)
        distance *= 2
    return block


def _exchange(builder: Any, lanes: Lanes, a: Any, b: Any, distance: int) -> tuple[Any, Any]:
    """Swap the off-diagonal sub-blocks, `distance` lanes wide, of two rows."""
    n = lanes.count
    low = [i if not i & distance else n + i - distance for i in range(n)]
    high = [i + distance if not i & distance else n + i for i in range(n)]
    kind = ir.VectorType(I32, n)
    return (
        builder.shuffle_vector(a, b, ir.Constant(kind, low)),
        builder.shuffle_vector(a, b, ir.Constant(kind, high)),
    )


def column_sum(storage: Storage) -> Any:
    """Intrinsic `column_sum(to, source, ld, rows, count)`: the sum of rows, on `count` lanes.

    Args:
        storage: how the rows lie in memory; the sum is written as it is computed.
    """
    lanes = storage.lanes

    def body(builder: Any, to: Any, source: Any, ld: Any, rows: Any, count: Any) -> None:
        mask = lanes.mask(builder, count)

        def add_row(index: Any, block: Any) -> Any:
            address = builder.add(source, builder.mul(index, ld))
            return [[builder.fadd(block[0][0], storage.masked_load(builder, address, mask))]]

        total = loop(builder, rows, [[lanes.constant(0.0)]], add_row)
        lanes.masked_store(builder, total[0][0], to, mask)

    def emit(builder: Any, *args: Any) -> None:
        builder.call(define(builder.module, f"rnnjit_column_sum_{storage.suffix}", 5, body), args)

    return emitting(5, emit)


def load_acquire() -> Any:
    """Intrinsic `load_acquire(address)`: an int64 that another thread may set.

    That thread's earlier writes are visible from then on.
    """

    def emit(builder: Any, address: Any) -> Any:
        return builder.load_atomic(builder.inttoptr(address, I64.as_pointer()), "acquire", 8)

    return emitting(1, emit, returns=True)


def atomic_increment() -> Any:
    """Intrinsic `atomic_increment(address)`: add 1 to an int64 that other threads add to, too."""

    def emit(builder: Any, address: Any) -> None:
        pointer = builder.inttoptr(address, I64.as_pointer())
        builder.atomic_rmw("add", pointer, I64(1), "seq_cst")

    return emitting(1, emit)


def increment_if_equal() -> Any:
    """Intrinsic `increment_if_equal(address, value)`: add 1 to an int64 if it is `value`.

    The result is 1 if it was, else 0. Of the threads that try with the same value, one gets 1.
    """

    def emit(builder: Any, address: Any, value: Any) -> Any:
        pointer = builder.inttoptr(address, I64.as_pointer())
        following = builder.add(value, I64(1))
        pair = builder.cmpxchg(pointer, value, following, "seq_cst", "seq_cst")
        return builder.zext(builder.extract_value(pair, 1), I64)

    return emitting(2, emit, returns=True)


def yield_processor() -> Any:
    """Intrinsic `yield_processor()`: let another runnable thread have this processor."""

    def emit(builder: Any) -> None:
        builder.call(declared(builder.module, ir.FunctionType(I32, []), "sched_yield"), [])

    return emitting(0, emit)

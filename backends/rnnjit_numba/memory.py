"""Moving data between layouts and between threads: the rest of the kernels' building blocks."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from rnnjit_numba.lanes import I32, I64, Lanes, define, emitting, load


def read_int() -> Any:
    """Intrinsic `read_int(address)`: the int64 at an address."""
    return emitting(1, lambda builder, address: load(builder, address, I64, 8), returns=True)


def write_int() -> Any:
    """Intrinsic `write_int(address, value)`: set the int64 at an address."""

    def emit(builder: Any, address: Any, value: Any) -> None:
        builder.store(value, builder.inttoptr(address, I64.as_pointer()), align=8)

    return emitting(2, emit)


def least() -> Any:
    """Intrinsic `least(a, b)`: the smaller of two int64."""
    return emitting(
        2, lambda builder, a, b: builder.select(builder.icmp_signed("<", a, b), a, b), returns=True
    )


def most() -> Any:
    """Intrinsic `most(a, b)`: the larger of two int64."""
    return emitting(
        2, lambda builder, a, b: builder.select(builder.icmp_signed(">", a, b), a, b), returns=True
    )


def onward() -> Any:
    """Intrinsic `onward(low, every, bound)`: the first of low, low + every, ... from `bound` on."""

    def emit(builder: Any, low: Any, every: Any, bound: Any) -> Any:
        ahead = builder.sub(bound, low)
        rounded = builder.sub(builder.add(ahead, every), I64(1))
        steps = builder.sdiv(rounded, every)
        reached = builder.add(low, builder.mul(steps, every))
        return builder.select(builder.icmp_signed(">", ahead, I64(0)), reached, low)

    return emitting(3, emit, returns=True)


def unpack_arguments(kind: type) -> Any:
    """Intrinsic `unpack(address)`: the named tuple `kind` of int64 fields at an address."""

    def typer(context: Any, address: Any) -> Any:
        fields = kind._fields  # type: ignore[attr-defined]  # `kind` is a NamedTuple class
        tuple_type = types.NamedUniTuple  # type: ignore[attr-defined]  # `types` is filled on import
        result = tuple_type(types.int64, len(fields), kind)

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            values = [
                load(builder, builder.add(args[0], I64(8 * i)), I64, 8)
                for i in range(len(signature.return_type))
            ]
            return context.make_tuple(builder, signature.return_type, values)

        return result(types.int64), codegen

    return intrinsic(typer)


def copy(lanes: Lanes) -> Any:
    """Intrinsic `copy(to, source, count, width)`: `count` lanes, then zeros up to `width` lanes.

    `source` may be 0, which reads as zeros.
    """

    def emit(builder: Any, to: Any, source: Any, count: Any, width: Any) -> None:
        present = builder.icmp_signed("!=", source, I64(0))
        valid = builder.select(present, count, I64(0))
        value = lanes.masked_load(builder, source, lanes.mask(builder, valid))
        lanes.masked_store(builder, value, to, lanes.mask(builder, width))

    return emitting(4, emit)


def add(lanes: Lanes) -> Any:
    """Intrinsic `add(to, a, b, count)`: `to = a + b` on `count` lanes; `b` may be 0 for zeros."""

    def emit(builder: Any, to: Any, a: Any, b: Any, count: Any) -> None:
        mask = lanes.mask(builder, count)
        present = builder.icmp_signed("!=", b, I64(0))
        second = builder.select(present, mask, ir.Constant(mask.type, None))
        total = builder.fadd(
            lanes.masked_load(builder, a, mask), lanes.masked_load(builder, b, second)
        )
        lanes.masked_store(builder, total, to, mask)

    return emitting(4, emit)


def transpose(lanes: Lanes) -> Any:
    """Intrinsic `transpose(to, source, ld, rows, columns)`: one square block of `count` rows.

    Reads `rows x columns` elements of a row-major matrix, its rows `ld` bytes apart, and writes
    `count` full vectors: vector k holds column k, zeros where the block ends.
    """
    name = f"rnnjit_transpose_{lanes.suffix}"

    def body(builder: Any, to: Any, source: Any, ld: Any, rows: Any, columns: Any) -> None:
        mask = lanes.mask(builder, columns)
        none = ir.Constant(mask.type, None)
        block = []
        for row in range(lanes.count):
            inside = builder.icmp_signed(">", rows, I64(row))
            address = builder.add(source, builder.mul(ld, I64(row)))
            block.append(lanes.masked_load(builder, address, builder.select(inside, mask, none)))
        block = transposed(lanes, builder, block)
        for k, value in enumerate(block):
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


def column_sum(lanes: Lanes) -> Any:
    """Intrinsic `column_sum(to, source, ld, rows, count)`: the sum of rows, `count` lanes."""

    def body(builder: Any, to: Any, source: Any, ld: Any, rows: Any, count: Any) -> None:
        mask = lanes.mask(builder, count)
        total = cgutils.alloca_once_value(builder, lanes.constant(0.0))
        with cgutils.for_range(builder, rows) as loop:
            address = builder.add(source, builder.mul(loop.index, ld))
            row = lanes.masked_load(builder, address, mask)
            builder.store(builder.fadd(builder.load(total), row), total)
        lanes.masked_store(builder, builder.load(total), to, mask)

    def emit(builder: Any, *args: Any) -> None:
        builder.call(define(builder.module, f"rnnjit_column_sum_{lanes.suffix}", 5, body), args)

    return emitting(5, emit)


def peek() -> Any:
    """Intrinsic `peek(address)`: the int64 that another thread may set.

    All that was written before it was set is visible from then on.
    """

    def emit(builder: Any, address: Any) -> Any:
        return builder.load_atomic(builder.inttoptr(address, I64.as_pointer()), "acquire", 8)

    return emitting(1, emit, returns=True)


def count_up() -> Any:
    """Intrinsic `count_up(address)`: add 1 to an int64 that other threads add to and peek at."""

    def emit(builder: Any, address: Any) -> None:
        pointer = builder.inttoptr(address, I64.as_pointer())
        builder.atomic_rmw("add", pointer, I64(1), "seq_cst")

    return emitting(1, emit)


def take() -> Any:
    """Intrinsic `take(address, value)`: add 1 to an int64 if it is `value`; 1 if so, else 0.

    Of the threads that try with the same value, one gets 1.
    """

    def emit(builder: Any, address: Any, value: Any) -> Any:
        pointer = builder.inttoptr(address, I64.as_pointer())
        following = builder.add(value, I64(1))
        pair = builder.cmpxchg(pointer, value, following, "seq_cst", "seq_cst")
        return builder.zext(builder.extract_value(pair, 1), I64)

    return emitting(2, emit, returns=True)


def give_way() -> Any:
    """Intrinsic `give_way()`: let another thread have this processor, if one wants it."""

    def emit(builder: Any) -> None:
        yielding = ir.FunctionType(I32, [])
        builder.call(cgutils.get_or_insert_function(builder.module, yielding, "sched_yield"), [])

    return emitting(0, emit)

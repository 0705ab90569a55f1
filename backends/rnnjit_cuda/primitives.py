"""Primitives that numba-cuda lacks: vectors, counters that blocks share, and 16-bit floats.

Each primitive is a numba intrinsic or, if NUMBA_ENABLE_CUDASIM=1, a plain Python function of the
same name, so that one kernel source serves the GPU and the simulator. None goes through numba's
dispatcher, which queries the current device, so that kernels compile without one.

`memory` is a `CPointer` or a shared array (in the simulator, a flat numpy array), `values` a local
array that lives in registers; every index counts elements. A vector is 16 bytes of `values`' type:
4 float32 or 2 float64. Vectors in memory must be aligned to their size.

bfloat16 and float16 are stored as uint16, and arithmetic on them is in float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from llvmlite import ir
from numba import cuda, types
from numba.core import config

#: Whether kernels run in numba-cuda's simulator in this process.
SIMULATED = bool(config.ENABLE_CUDASIM)
#: The module of exp, log and so on. Python's own functions raise if a result is out of range.
library = np if SIMULATED else math

_I16, _I32 = ir.IntType(16), ir.IntType(32)
_HALF, _FLOAT = ir.HalfType(), ir.FloatType()
_VOID = ir.VoidType()


@dataclass(frozen=True)
class Element:
    """How numbers of one dtype are stored, and computed with.

    Attributes:
        store: numba type in memory.
        real: numba type of arithmetic, of the state and of numbers that blocks exchange.
        width: elements of `real` in a vector.
        up: `(stored) -> real`.
        down: `(real) -> stored`, rounded to nearest, ties to even.
        load: `(values, at, memory, index)`: a vector of reals from stored numbers.
    """

    store: Any
    real: Any
    width: int
    up: Callable[[Any], Any]
    down: Callable[[Any], Any]
    load: Callable[[Any, Any, Any, Any], None]


def inlined(function: Callable[..., Any]) -> Any:
    """A device function that is inlined where it is called, and needs no device to compile."""
    return function if SIMULATED else cuda.jit(device=True, inline="always")(function)


def _primitive(twin: Callable[..., Any], build: Callable[[], Any]) -> Any:
    """`twin` in the simulator, else the intrinsic that `build` makes."""
    return twin if SIMULATED else build()


def _address(
    context: Any, builder: Any, kind: Any, memory: Any, index: Any, index_kind: Any
) -> Any:
    """The LLVM pointer to an element of a `CPointer` or an array."""
    at = context.cast(builder, index, index_kind, types.intp)
    if isinstance(kind, types.CPointer):
        return builder.gep(memory, [at])
    data = context.make_array(kind)(context, builder, memory).data
    return builder.gep(data, [at])


def _moving(emit: Callable[[Any, Any, Any], None]) -> Any:
    """The intrinsic `(a, i, b, j)` whose code is `emit(builder, &a[i], &b[j])`."""
    from numba.cuda.extending import intrinsic

    def typer(context: Any, a: Any, i: Any, b: Any, j: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            kinds = signature.args
            first = _address(context, builder, kinds[0], args[0], args[1], kinds[1])
            second = _address(context, builder, kinds[2], args[2], args[3], kinds[3])
            emit(builder, first, second)
            return context.get_dummy_value()

        return types.none(a, i, b, j), codegen

    return intrinsic(typer)


def _converting(result: Any, argument: Any, emit: Callable[[Any, Any], Any]) -> Any:
    """The intrinsic that maps a number of type `argument` to one of type `result`."""
    from numba.cuda.extending import intrinsic

    def typer(context: Any, value: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return emit(builder, args[0])

        return result(argument), codegen

    return intrinsic(typer)


def _width(pointer: Any) -> int:
    """Elements in a vector."""
    return 4 if pointer.type.pointee == _FLOAT else 2


def _put(builder: Any, values: Any, numbers: list[Any]) -> None:
    """Write a vector's numbers to `values`, one by one, so that they can stay in registers."""
    for q, number in enumerate(numbers):
        builder.store(number, builder.gep(values, [_I32(q)]))


def _numbers(builder: Any, vector: Any) -> list[Any]:
    """The elements of an LLVM vector."""
    return [builder.extract_element(vector, _I32(q)) for q in range(vector.type.count)]


def _vector_at(builder: Any, memory: Any, kind: Any, alignment: int) -> Any:
    """The LLVM vector of type `kind` at a pointer."""
    space = memory.type.addrspace
    return builder.load(builder.bitcast(memory, kind.as_pointer(space)), align=alignment)


def _emit_load(builder: Any, values: Any, memory: Any) -> None:
    kind = ir.VectorType(memory.type.pointee, _width(values))
    _put(builder, values, _numbers(builder, _vector_at(builder, memory, kind, 16)))


def _emit_load_bfloat16(builder: Any, values: Any, memory: Any) -> None:
    # A float32 whose low half is zero: a shift or a mask for each number.
    pairs = _numbers(builder, _vector_at(builder, memory, ir.VectorType(_I32, 2), 8))
    bits = [b for p in pairs for b in (builder.shl(p, _I32(16)), builder.and_(p, _I32(0xFFFF0000)))]
    _put(builder, values, [builder.bitcast(b, _FLOAT) for b in bits])


def _emit_load_float16(builder: Any, values: Any, memory: Any) -> None:
    halves = _numbers(builder, _vector_at(builder, memory, ir.VectorType(_HALF, 4), 8))
    _put(builder, values, [builder.fpext(half, _FLOAT) for half in halves])


def _emit_store(builder: Any, memory: Any, values: Any) -> None:
    kind = ir.VectorType(memory.type.pointee, _width(values))
    vector = ir.Constant(kind, ir.Undefined)
    for q in range(kind.count):
        number = builder.load(builder.gep(values, [_I32(q)]))
        vector = builder.insert_element(vector, number, _I32(q))
    to = builder.bitcast(memory, kind.as_pointer(memory.type.addrspace))
    builder.store(vector, to, align=16)


def _load_twin(values: Any, at: int, memory: Any, index: int) -> None:
    width = 16 // values.itemsize
    values[at : at + width] = memory[_aligned(index, width) : index + width]


def _store_twin(memory: Any, index: int, values: Any, at: int) -> None:
    width = 16 // values.itemsize
    memory[_aligned(index, width) : index + width] = values[at : at + width]


def _load_bfloat16_twin(values: Any, at: int, memory: Any, index: int) -> None:
    bits = memory[_aligned(index, 4) : index + 4].astype(np.uint32) << np.uint32(16)
    values[at : at + 4] = bits.view(np.float32)


def _load_float16_twin(values: Any, at: int, memory: Any, index: int) -> None:
    values[at : at + 4] = memory[_aligned(index, 4) : index + 4].view(np.float16)


def _aligned(index: int, width: int) -> int:
    """The index of a vector, which a GPU requires to be aligned."""
    if index % width:
        raise IndexError(f"a vector of {width} elements at element {index} is not aligned")
    return index


def _build_arrive() -> Any:
    from numba.cuda.extending import intrinsic

    def typer(context: Any, counters: Any, index: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            kinds = signature.args
            to = _address(context, builder, kinds[0], args[0], args[1], kinds[1])
            code = ir.InlineAsm(
                ir.FunctionType(_VOID, [to.type]),
                "red.release.gpu.global.add.u64 [$0], 1;",
                "l,~{memory}",
                True,
            )
            builder.call(code, [to])
            return context.get_dummy_value()

        return types.none(counters, index), codegen

    return intrinsic(typer)


def _arrive_twin(counters: Any, index: int) -> None:
    counters[index] += 1


def _build_prefetch() -> Any:
    from numba.cuda.extending import intrinsic

    def typer(context: Any, memory: Any, index: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            kinds = signature.args
            at = _address(context, builder, kinds[0], args[0], args[1], kinds[1])
            kind = ir.FunctionType(_VOID, [at.type])
            code = ir.InlineAsm(kind, "prefetch.global.L2 [$0];", "l", True)
            builder.call(code, [at])
            return context.get_dummy_value()

        return types.none(memory, index), codegen

    return intrinsic(typer)


def _prefetch_twin(memory: Any, index: int) -> None:
    if not 0 <= index < memory.size:
        raise IndexError(f"there is no element {index}")


def _build_arrived() -> Any:
    from numba.cuda.extending import intrinsic

    def typer(context: Any, counters: Any, index: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            kinds = signature.args
            at = _address(context, builder, kinds[0], args[0], args[1], kinds[1])
            code = ir.InlineAsm(
                ir.FunctionType(ir.IntType(64), [at.type]),
                "ld.acquire.gpu.global.u64 $0, [$1];",
                "=l,l,~{memory}",
                True,
            )
            return builder.call(code, [at])

        return types.int64(counters, index), codegen

    return intrinsic(typer)


def _arrived_twin(counters: Any, index: int) -> int:
    # The threads of the simulator take turns: a waiting thread must let the others run.
    cuda.nanosleep(0)
    return int(counters[index])


def _build_small() -> Any:
    from numba.cuda.extending import intrinsic

    def typer(context: Any, value: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            wide = context.cast(builder, args[0], signature.args[0], types.int64)
            return builder.zext(builder.trunc(wide, _I32), ir.IntType(64))

        return types.int64(value), codegen

    return intrinsic(typer)


def _small_twin(value: Any) -> int:
    if not 0 <= value < 1 << 32:
        raise OverflowError(f"{value} does not fit into 32 bits")
    return int(value)


def _emit_bfloat16_up(builder: Any, bits: Any) -> Any:
    return builder.bitcast(builder.shl(builder.zext(bits, _I32), _I32(16)), _FLOAT)


def _emit_bfloat16_down(builder: Any, value: Any) -> Any:
    kind = ir.FunctionType(_I16, [_FLOAT])
    return builder.call(ir.InlineAsm(kind, "cvt.rn.bf16.f32 $0, $1;", "=h,f"), [value])


def _emit_float16_up(builder: Any, bits: Any) -> Any:
    return builder.fpext(builder.bitcast(bits, _HALF), _FLOAT)


def _emit_float16_down(builder: Any, value: Any) -> Any:
    return builder.bitcast(builder.fptrunc(value, _HALF), _I16)


def _bfloat16_up_twin(bits: Any) -> Any:
    return (np.uint32(bits) << np.uint32(16)).view(np.float32)


def _bfloat16_down_twin(value: Any) -> Any:
    bits = int(np.float32(value).view(np.uint32))
    if value != value:
        return np.uint16(0x7FFF)
    return np.uint16((bits + 0x7FFF + (bits >> 16 & 1)) >> 16)


def _float16_up_twin(bits: Any) -> Any:
    return np.float32(np.uint16(bits).view(np.float16))


def _float16_down_twin(value: Any) -> Any:
    return np.float16(value).view(np.uint16)


def _same(value: Any) -> Any:
    """The number itself: its stored type is that of arithmetic."""
    return value


#: `load(values, at, memory, index)`: a vector of reals.
load = _primitive(_load_twin, lambda: _moving(_emit_load))
#: `store(memory, index, values, at)`: a vector of reals.
store = _primitive(_store_twin, lambda: _moving(_emit_store))
#: `small(value)`: an integer of 32 bits, which takes one register; numba's integers take two.
small = _primitive(_small_twin, _build_small)
#: `prefetch(memory, index)`: loads an element into the L2 cache.
prefetch = _primitive(_prefetch_twin, _build_prefetch)
#: `arrive(counters, index)`: adds 1 to an int64 counter, after everything that the block wrote
#: before (release).
arrive = _primitive(_arrive_twin, _build_arrive)
#: `arrived(counters, index)`: the counter (acquire). What other blocks wrote before their arrivals
#: is visible afterwards; to the block's other threads, after a barrier with the one that reads it.
arrived = _primitive(_arrived_twin, _build_arrived)


def element(dtype: str) -> Element:
    """How numbers of a dtype are stored and computed with.

    Args:
        dtype: "float32", "float64", "bfloat16" or "float16".
    """
    if dtype in ("float32", "float64"):
        real = types.float32 if dtype == "float32" else types.float64
        same = inlined(_same)
        return Element(real, real, 128 // real.bitwidth, same, same, load)
    half, single = types.uint16, types.float32
    if dtype == "bfloat16":
        up = _primitive(_bfloat16_up_twin, lambda: _converting(single, half, _emit_bfloat16_up))
        down = _primitive(
            _bfloat16_down_twin, lambda: _converting(half, single, _emit_bfloat16_down)
        )
        vector = _primitive(_load_bfloat16_twin, lambda: _moving(_emit_load_bfloat16))
    else:
        up = _primitive(_float16_up_twin, lambda: _converting(single, half, _emit_float16_up))
        down = _primitive(_float16_down_twin, lambda: _converting(half, single, _emit_float16_down))
        vector = _primitive(_load_float16_twin, lambda: _moving(_emit_load_float16))
    return Element(half, single, 4, up, down, vector)

"""Building PrimFuncs of TensorIR: scalars, vectors, memory at addresses.

PrimFuncs are built by TVM's IR builder rather than parsed from TVMScript, so that they can be
composed of Python functions and need no source file. They use C's calling convention: parameters
are pointers and int64 values, nothing is returned, and they call each other by symbol. The compiled
code therefore needs neither TVM's runtime nor its thread pool. The caller owns all memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import tvm
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

from rnnjit.codegen.subnormals import MXCSR_FLUSH

#: A size for buffers, which stand for memory whose true size only the kernels know.
_SIZE = 1 << 48


@dataclass(frozen=True)
class Lanes:
    """Vectors of one element type.

    Attributes:
        bits: of an element, 32 or 64.
        count: elements in a vector.
        fma: whether a fused multiply-add is one instruction.
    """

    bits: int
    count: int
    fma: bool

    @property
    def dtype(self) -> str:
        """TVM's name of the element type."""
        return f"float{self.bits}"

    @property
    def vector(self) -> str:
        """TVM's name of the vector type."""
        return f"float{self.bits}x{self.count}"

    @property
    def integer(self) -> str:
        """TVM's name of the vector type of integers as wide as the elements."""
        return f"int{self.bits}x{self.count}"

    def constant(self, value: float) -> Any:
        """A vector of one value."""
        return T.broadcast(tvm.tirx.const(value, self.dtype), self.count)

    def integers(self, value: int) -> Any:
        """A vector of one integer."""
        return T.broadcast(tvm.tirx.const(value, f"int{self.bits}"), self.count)

    def spread(self, value: Any) -> Any:
        """A vector of one element."""
        return T.broadcast(value, self.count)

    def at(self, index: Any) -> Any:
        """The indices of the vector that starts at an index."""
        return T.ramp(index, 1, self.count)

    def mask(self, count: Any) -> Any:
        """The first `count` lanes."""
        first, behind = tvm.tirx.const(0, "int32"), T.cast(count, "int32")
        return T.get_active_lane_mask(f"boolx{self.count}", first, behind)

    def load(self, buffer: Any, index: Any, count: Any) -> Any:
        """The first `count` lanes from memory, zeros in the others."""
        mask = self.mask(count)
        found = T.masked_load(self.vector, buffer, self.at(index), mask)
        return T.Select(mask, found, self.zeros())

    def store(self, buffer: Any, index: Any, value: Any, count: Any) -> None:
        """Write the first `count` lanes to memory."""
        T.evaluate(T.masked_store(buffer, value, self.at(index), self.mask(count)))

    def call(self, name: str, *args: Any) -> Any:
        """LLVM's intrinsic `llvm.<name>` of vectors."""
        return T.call_llvm_pure_intrin(self.vector, f"llvm.{name}", *args)

    def multiply_add(self, a: Any, b: Any, c: Any) -> Any:
        """Compute a * b + c, rounded once if the target has FMA."""
        return self.call("fma", a, b, c) if self.fma else a * b + c

    def vectors(self, count: Any) -> Any:
        """How many vectors hold `count` elements."""
        return T.truncdiv(count + (self.count - 1), integer(self.count))

    def zeros(self) -> Any:
        """A vector of zeros."""
        return self.constant(0.0)

    @property
    def itemsize(self) -> int:
        """Bytes of an element."""
        return self.bits // 8

    def memory(self, place: Any) -> Any:
        """The memory at an address, as a buffer of elements."""
        return pointer(place, self.dtype)

    def element(self, place: Any) -> Any:
        """A pointer to the element at an address."""
        return address(self.memory(place), integer(0))

    def after(self, place: Any, *elements: Any) -> Any:
        """The address that is so many elements behind another."""
        return T.bind(place + sum(elements[1:], elements[0]) * self.itemsize)


class Module:
    """PrimFuncs that are compiled together.

    Attributes:
        lanes: the vectors that they compute with.
        functions: the PrimFuncs by name.
    """

    def __init__(self, lanes: Lanes) -> None:
        self.lanes = lanes
        self.functions: dict[str, Any] = {}

    def add(
        self,
        name: str,
        pointers: Sequence[str],
        integers: Sequence[str],
        body: Callable[..., None],
        dtype: str | None = None,
    ) -> None:
        """Build a PrimFunc.

        Args:
            name: its symbol.
            pointers: names of its first parameters, which point to elements.
            integers: names of its other parameters, int64.
            body: emits its statements, given a buffer for each pointer and a variable for each
                integer.
            dtype: of the elements that the pointers point to, if not those of `lanes`.
        """
        element = dtype or self.lanes.dtype
        with IRBuilder() as builder:
            with T.prim_func():
                T.func_name(name)
                handles = [T.arg(each, T.handle(element)) for each in pointers]
                values = [T.arg(each, T.int64()) for each in integers]
                body(*(memory(handle, element) for handle in handles), *values)
            self.functions[name] = builder.get()

    def add_phase(self, name: str, body: Callable[..., None]) -> None:
        """Build a PrimFunc `<name>(block, thread, threads)`: one thread's part of some work.

        `body` is given the argument block, and two variables.
        """
        self.add(name, ["block"], ["thread", "threads"], body, dtype="int64")


def memory(handle: Any, dtype: str) -> Any:
    """The memory at a pointer, as a buffer aligned to one element."""
    size = tvm.tirx.const(_SIZE, "int64")
    align = tvm.DataType(dtype).bits // 8
    return T.decl_buffer((size,), dtype, data=handle, align=align, layout=None)


def local(count: int, dtype: str) -> Any:
    """A small local array; LLVM keeps it in registers where it can."""
    return T.alloc_buffer((count,), dtype, scope="local", layout=None)


def pointer(address: Any, dtype: str) -> Any:
    """The memory at an address."""
    kind = tvm.ir.PointerType(tvm.ir.PrimType(dtype))
    return memory(T.bind(T.reinterpret(kind, address)), dtype)


def address(buffer: Any, index: Any) -> Any:
    """A pointer to an element."""
    return T.address_of(buffer[index])


def either(condition: Any, a: Any, b: Any) -> Any:
    """One of two int64 values, both of which are computed."""
    return T.bind(T.Select(condition, a, b))


def call(name: str, *args: Any) -> None:
    """Call another PrimFunc of the module."""
    T.evaluate(T.call_extern("void", name, *args))


@contextmanager
def flushing() -> Iterator[None]:
    """Flush subnormal results to zero in what runs inside, on x86-64; the setting is put back."""
    callers, changed = local(1, "int32"), local(1, "int32")

    def control(instruction: str, buffer: Any) -> None:
        place = address(buffer, integer(0))
        T.evaluate(T.call_llvm_intrin("void", f"llvm.x86.sse.{instruction}", place))

    control("stmxcsr", callers)
    flush = tvm.tirx.const(MXCSR_FLUSH, "int32")
    T.buffer_store(changed, T.bitwise_or(callers[0], flush), [0])
    control("ldmxcsr", changed)
    yield
    control("ldmxcsr", callers)


def integer(value: int) -> Any:
    """An int64 constant."""
    return tvm.tirx.const(value, "int64")


def least(a: Any, b: Any) -> Any:
    """The smaller of two int64 values."""
    return T.bind(T.min(a, b))


def most(a: Any, b: Any) -> Any:
    """The larger of two int64 values."""
    return T.bind(T.max(a, b))


@contextmanager
def when(condition: Any) -> Iterator[None]:
    """Run what is emitted inside only if a condition holds."""
    with T.If(condition), T.Then():
        yield


def loop(start: Any, stop: Any) -> Any:
    """A frame that runs what is emitted inside for each int64 from `start` up to `stop`."""
    return T.serial(start, stop)

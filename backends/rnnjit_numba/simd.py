"""Vector building blocks: numba intrinsics that emit LLVM vector IR for one element type.

Kernels address memory by plain integers (bytes), since they run without Python's runtime; the
caller owns all memory. `Lanes` holds what depends on the element type and the vector width.

Masks: a vector operation on `count` lanes reads and writes lanes 0 to count-1 only, so that rows
need no padding and nothing out of bounds is read or written.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from math import copysign
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

I32 = ir.IntType(32)
I64 = ir.IntType(64)
VOID = ir.VoidType()
#: The linkage of functions of which modules that are linked together share one copy.
SHARED = "linkonce_odr"


class BFloatType(ir.Type):  # type: ignore[misc]  # llvmlite has no types
    """LLVM's type bfloat, which only the signatures of instructions name."""

    def __str__(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BFloatType)

    def __hash__(self) -> int:
        return hash(BFloatType)


@dataclass(frozen=True)
class Lanes:
    """One element type in vectors of one width.

    Attributes:
        bits: of an element, 32 or 64.
        count: elements in a vector.
        fma: whether the target has a fused multiply-add.
    """

    bits: int
    count: int
    fma: bool

    @property
    def itemsize(self) -> int:
        """Bytes of an element."""
        return self.bits // 8

    @property
    def vector_bytes(self) -> int:
        """Bytes of a vector."""
        return self.itemsize * self.count

    @cached_property
    def scalar(self) -> Any:
        """The LLVM type of an element."""
        return ir.FloatType() if self.bits == 32 else ir.DoubleType()

    @cached_property
    def integer(self) -> Any:
        """The LLVM vector type of integers as wide as the elements."""
        return ir.VectorType(ir.IntType(self.bits), self.count)

    @cached_property
    def vector(self) -> Any:
        """The LLVM vector type."""
        return ir.VectorType(self.scalar, self.count)

    def joined(self, vectors: int) -> Lanes:
        """Vectors as wide as some of these, which LLVM computes by instructions side by side."""
        return replace(self, count=vectors * self.count)

    @property
    def suffix(self) -> str:
        """The suffix of LLVM's overloaded intrinsics for this vector type."""
        return f"v{self.count}f{self.bits}"

    def constant(self, value: float) -> Any:
        """A vector with one value in all lanes."""
        if value == 0 and copysign(1, value) > 0:
            return ir.Constant(self.vector, None)
        return ir.Constant(self.vector, [value] * self.count)

    def integers(self, value: int) -> Any:
        """An integer vector with one value in all lanes."""
        return ir.Constant(self.integer, [value] * self.count)

    def call(self, builder: Any, name: str, *args: Any) -> Any:
        """Call an LLVM intrinsic that maps vectors to a vector of this type."""
        signature = ir.FunctionType(self.vector, [arg.type for arg in args])
        return builder.call(declared(builder.module, signature, f"llvm.{name}.{self.suffix}"), args)

    def multiply_add(self, builder: Any, a: Any, b: Any, c: Any) -> Any:
        """Compute a * b + c: rounded once if the target has FMA, else in the fastest way it has."""
        return self.call(builder, "fma" if self.fma else "fmuladd", a, b, c)

    def broadcast(self, builder: Any, scalar: Any) -> Any:
        """A scalar in all lanes."""
        undefined = ir.Constant(self.vector, ir.Undefined)
        single = builder.insert_element(undefined, scalar, I32(0))
        zeros = ir.Constant(ir.VectorType(I32, self.count), None)
        return builder.shuffle_vector(single, undefined, zeros)

    def join(self, builder: Any, first: Any, second: Any) -> Any:
        """Two vectors as one of twice the width."""
        lanes = ir.Constant(ir.VectorType(I32, 2 * self.count), list(range(2 * self.count)))
        return builder.shuffle_vector(first, second, lanes)

    def mask(self, builder: Any, count: Any) -> Any:
        """The mask of the first `count` lanes."""
        wide = ir.VectorType(I64, self.count)
        undefined = ir.Constant(wide, ir.Undefined)
        single = builder.insert_element(undefined, count, I32(0))
        zeros = ir.Constant(ir.VectorType(I32, self.count), None)
        counts = builder.shuffle_vector(single, undefined, zeros)
        return builder.icmp_signed("<", ir.Constant(wide, list(range(self.count))), counts)

    def are_whole(self, builder: Any, count: Any) -> Any:
        """Whether `count` lanes are a whole vector."""
        return builder.icmp_signed(">=", count, I64(self.count))

    def load(self, builder: Any, address: Any) -> Any:
        """The full vector at an address (a multiple of the item size)."""
        return load(builder, address, self.vector, self.itemsize)

    def store(self, builder: Any, value: Any, address: Any) -> None:
        """Write a full vector to an address."""
        pointer = builder.inttoptr(address, self.vector.as_pointer())
        builder.store(value, pointer, align=self.itemsize)

    def masked_load(self, builder: Any, address: Any, mask: Any) -> Any:
        """The lanes in `mask` of the vector at an address, zero in the others; all if None."""
        if mask is None:
            return self.load(builder, address)
        pointer = builder.inttoptr(address, self.vector.as_pointer())
        signature = ir.FunctionType(self.vector, [pointer.type, I32, mask.type, self.vector])
        function = declared(builder.module, signature, f"llvm.masked.load.{self.suffix}.p0")
        return builder.call(function, [pointer, I32(self.itemsize), mask, self.constant(0.0)])

    def masked_store(self, builder: Any, value: Any, address: Any, mask: Any) -> None:
        """Write the lanes in `mask` of a vector to an address; all if it is None."""
        if mask is None:
            self.store(builder, value, address)
            return
        pointer = builder.inttoptr(address, self.vector.as_pointer())
        signature = ir.FunctionType(VOID, [self.vector, pointer.type, I32, mask.type])
        function = declared(builder.module, signature, f"llvm.masked.store.{self.suffix}.p0")
        builder.call(function, [value, pointer, I32(self.itemsize), mask])


def whole_or_masked(builder: Any, whole: Any, emit: Callable[[bool], None]) -> None:
    """`emit(True)` where vectors are whole, else `emit(False)`, which has to mask them.

    Some processors take tens of cycles over a masked store, and masks themselves take a few.
    """
    with builder.if_else(whole) as (then, otherwise):
        with then:
            emit(True)
        with otherwise:
            emit(False)


def either(
    builder: Any, condition: Any, then: Callable[[], list[Any]], otherwise: Callable[[], list[Any]]
) -> list[Any]:
    """The values whose code `then` emits, where the condition holds, else those of `otherwise`."""
    with builder.if_else(condition) as branches:
        values, blocks = [], []
        for branch, emit in zip(branches, (then, otherwise), strict=True):
            with branch:
                values.append(emit())
                blocks.append(builder.block)
    results = []
    for pair in zip(*values, strict=True):
        phi = builder.phi(pair[0].type)
        for value, block in zip(pair, blocks, strict=True):
            phi.add_incoming(value, block)
        results.append(phi)
    return results


def load(builder: Any, address: Any, kind: Any, alignment: int) -> Any:
    """The value of an LLVM type at an integer address."""
    return builder.load(builder.inttoptr(address, kind.as_pointer()), align=alignment)


def prefetch(builder: Any, address: Any) -> None:
    """Ask for the cache line of an address that is written soon; it may be any address."""
    pointer = builder.inttoptr(address, ir.IntType(8).as_pointer())
    signature = ir.FunctionType(VOID, [pointer.type, I32, I32, I32])
    written, keep, data = I32(1), I32(3), I32(1)
    function = declared(builder.module, signature, "llvm.prefetch.p0")
    builder.call(function, [pointer, written, keep, data])


def declared(module: Any, signature: Any, name: str) -> Any:
    """The function of a name in a module, declared if it is not there."""
    function = module.globals.get(name)
    return ir.Function(module, signature, name) if function is None else function


class KernelPart(ir.Module):  # type: ignore[misc]  # llvmlite is not typed
    """A module that is linked with those of the tiles."""


def define_tile(module: Any, name: str, arguments: int, body: Callable[..., None]) -> Any:
    """As `define`; a `KernelPart` declares the function, which another module defines."""
    if isinstance(module, KernelPart):
        return declared(module, ir.FunctionType(VOID, [I64] * arguments), name)
    return define(module, name, arguments, body)


def define(module: Any, name: str, arguments: int, body: Callable[..., None]) -> Any:
    """The function `name(i64, ...)` of a module, whose body `body(builder, *args)` emits once.

    It is never inlined, and modules that are linked together share one copy.
    """
    function = module.globals.get(name)
    if function is None:
        function = ir.Function(module, ir.FunctionType(VOID, [I64] * arguments), name)
        function.linkage = SHARED
        function.attributes.add("nounwind")
        function.attributes.add("noinline")
        builder = ir.IRBuilder(function.append_basic_block("entry"))
        body(builder, *function.args)
        if not builder.block.is_terminated:
            builder.ret_void()
    return function


def loop(
    builder: Any, trips: Any, block: Any, step: Callable[..., Any], *, at_least_once: bool = False
) -> Any:
    """A block of vectors after `trips` iterations of `block = step(index, block)`.

    The block, a list of rows of vectors, stays in registers from one iteration to the next.
    """
    before = builder.block
    head = builder.append_basic_block("k")
    after = builder.append_basic_block("k_end")
    if at_least_once:
        builder.branch(head)
    else:
        builder.cbranch(builder.icmp_signed(">", trips, I64(0)), head, after)
    builder.position_at_end(head)
    index = builder.phi(I64)
    index.add_incoming(I64(0), before)
    carried = [[_phi(builder, value, before) for value in row] for row in block]
    updated = step(index, carried)
    following = builder.add(index, I64(1))
    index.add_incoming(following, builder.block)
    for phis, values in zip(carried, updated, strict=True):
        for phi, value in zip(phis, values, strict=True):
            phi.add_incoming(value, builder.block)
    last = builder.block
    builder.cbranch(builder.icmp_signed("<", following, trips), head, after)
    builder.position_at_end(after)
    if at_least_once:
        return updated
    result = []
    for initial, values in zip(block, updated, strict=True):
        joined = [_phi(builder, value, before) for value in initial]
        for phi, value in zip(joined, values, strict=True):
            phi.add_incoming(value, last)
        result.append(joined)
    return result


def _phi(builder: Any, value: Any, block: Any) -> Any:
    phi = builder.phi(value.type)
    phi.add_incoming(value, block)
    return phi


def emitting(arguments: int, emit: Callable[..., Any], *, returns: bool = False) -> Any:
    """A numba intrinsic of `arguments` int64 values whose code is `emit(builder, *args)`."""

    def typer(context: Any, *args: Any) -> Any:
        result = types.int64 if returns else types.void
        signature = result(*[types.int64] * arguments)

        def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            value = emit(builder, *values)
            return value if returns else context.get_dummy_value()

        return signature, codegen

    # numba binds an intrinsic's arguments by its signature, which may not have *args.
    names = ["context", *(f"a{i}" for i in range(arguments))]
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [inspect.Parameter(name, kind) for name in names]
    typer.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # functions may carry one
    return intrinsic(typer)

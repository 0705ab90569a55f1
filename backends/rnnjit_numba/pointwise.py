"""Programs of cells as code on vectors, and the step of nn.RNN's cell in place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rnnjit.codegen.pointwise import Vectors, lower
from rnnjit.ir import CellSpec
from rnnjit_numba.simd import Lanes, emitting, whole_or_masked


def step(lanes: Lanes, cell: CellSpec, *, in_place: bool) -> Any:
    """Intrinsic `step(address, count)`: h = f(z) in place, on `count` lanes.

    For cells whose step is not `in_place` it does nothing: theirs is `cell_step.step`.
    """
    if not in_place:
        return emitting(2, lambda builder, address, count: None)
    (accumulator,) = cell.accumulators

    def emit(builder: Any, address: Any, count: Any) -> None:
        def code(whole: bool) -> None:
            mask = None if whole else lanes.mask(builder, count)
            z = lanes.masked_load(builder, address, mask)
            out, *_ = lower(cell.step, vectors(lanes, builder), {accumulator.name: z})
            lanes.masked_store(builder, out, address, mask)

        whole_or_masked(builder, lanes.are_whole(builder, count), code)

    return emitting(2, emit)


def vectors(lanes: Lanes, builder: Any) -> Vectors:
    """`Vectors` that a builder emits."""
    return _Vectors(lanes, builder)


@dataclass(frozen=True)
class _Vectors:
    """`rnnjit.codegen.pointwise.Vectors` by llvmlite's builder."""

    lanes: Lanes
    builder: Any

    @property
    def bits(self) -> int:
        return self.lanes.bits

    def constant(self, value: float) -> Any:
        return self.lanes.constant(value)

    def add(self, x: Any, y: Any) -> Any:
        return self.builder.fadd(x, y)

    def sub(self, x: Any, y: Any) -> Any:
        return self.builder.fsub(x, y)

    def mul(self, x: Any, y: Any) -> Any:
        return self.builder.fmul(x, y)

    def div(self, x: Any, y: Any) -> Any:
        return self.builder.fdiv(x, y)

    def neg(self, x: Any) -> Any:
        return self.builder.fneg(x)

    def multiply_add(self, x: Any, y: Any, z: Any) -> Any:
        return self.lanes.multiply_add(self.builder, x, y, z)

    def call(self, name: str, *values: Any) -> Any:
        return self.lanes.call(self.builder, name, *values)

    def compare(self, symbol: str, x: Any, y: Any) -> Any:
        if symbol == "!=":
            return self.builder.fcmp_unordered(symbol, x, y)
        return self.builder.fcmp_ordered(symbol, x, y)

    def select(self, condition: Any, x: Any, y: Any) -> Any:
        return self.builder.select(condition, x, y)

    def bits_of(self, x: Any) -> Any:
        return self.builder.bitcast(x, self.lanes.integer)

    def from_bits(self, n: Any) -> Any:
        return self.builder.bitcast(n, self.lanes.vector)

    def integer_constant(self, value: int) -> Any:
        return self.lanes.integers(value)

    def integer_add(self, n: Any, m: Any) -> Any:
        return self.builder.add(n, m)

    def integer_sub(self, n: Any, m: Any) -> Any:
        return self.builder.sub(n, m)

    def shift_left(self, n: Any, count: int) -> Any:
        return self.builder.shl(n, self.lanes.integers(count))

    def shift_right(self, n: Any, count: int) -> Any:
        return self.builder.ashr(n, self.lanes.integers(count))

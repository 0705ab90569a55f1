"""The pointwise part of a cell's step and of its gradient, on one vector in memory at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llvmlite import ir

from rnnjit.cells import Cell
from rnnjit.codegen.pointwise import lower
from rnnjit_numba.simd import Lanes, emitting


def step(lanes: Lanes, cell: Cell) -> Any:
    """Intrinsic `step(address, count)`: h = f(z) in place, on `count` lanes."""
    (accumulator,) = cell.accumulators

    def emit(builder: Any, address: Any, count: Any) -> None:
        mask = lanes.mask(builder, count)
        z = lanes.masked_load(builder, address, mask)
        out, *_ = lower(cell.step, _Vectors(lanes, builder), {accumulator.name: z})
        lanes.masked_store(builder, out, address, mask)

    return emitting(2, emit)


def step_backward(lanes: Lanes, cell: Cell) -> Any:
    """Intrinsic `step_backward(dz, grad_y, h, count)`, on `count` lanes at each address.

    Computes dz = (dz + grad_y) * f'(z), the derivative expressed by h = f(z). On entry `dz` holds
    the gradient from the next step. `grad_y` may be 0, for a gradient of zeros.
    """

    def emit(builder: Any, dz: Any, grad_y: Any, h: Any, count: Any) -> None:
        mask = lanes.mask(builder, count)
        present = builder.icmp_signed("!=", grad_y, ir.Constant(grad_y.type, 0))
        no_lanes = ir.Constant(mask.type, None)
        inputs = {
            "out": lanes.masked_load(builder, h, mask),
            "grad_out": lanes.masked_load(builder, grad_y, builder.select(present, mask, no_lanes)),
            f"grad_new_{cell.states[0]}": lanes.masked_load(builder, dz, mask),
        }
        gradient, *_ = lower(cell.backward, _Vectors(lanes, builder), inputs)
        if gradient is None:
            gradient = lanes.constant(0.0)
        lanes.masked_store(builder, gradient, dz, mask)

    return emitting(4, emit)


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

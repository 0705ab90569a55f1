"""Operations of a cell's programs on vectors, in TensorIR."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import tvm
from tvm.tirx.script.builder import ir as T

from rnnjit.codegen.pointwise import Vectors
from rnnjit_tvm.tensorir import Lanes, integer, local

_COMPARISONS: Mapping[str, Callable[[Any, Any], Any]] = MappingProxyType(
    {
        "<": operator.lt,
        "<=": operator.le,
        ">": operator.gt,
        ">=": operator.ge,
        "==": tvm.tirx.EQ,
        # TensorIR's own NE is false for NaN.
        "!=": lambda x, y: tvm.tirx.Not(tvm.tirx.EQ(x, y)),
    }
)


def vectors(lanes: Lanes) -> Vectors:
    """`Vectors` that TVM's builder emits."""
    return _Vectors(lanes)


@dataclass(frozen=True)
class _Vectors:
    """`rnnjit.codegen.pointwise.Vectors` in TensorIR.

    Numbers and integers are kept in memory, which LLVM replaces by registers: expressions of
    TensorIR are trees, and so a value that is used twice would be computed twice. Variables would
    not do: TVM's simplifier replaces them by their values, and those in these, which takes
    exponential time. Conditions cannot be kept and are computed anew at each use.

    Attributes:
        lanes: the vectors.
    """

    lanes: Lanes

    @property
    def bits(self) -> int:
        return self.lanes.bits

    def _kept(self, x: Any, kind: str = "float") -> Any:
        memory, whole = local(self.lanes.count, f"{kind}{self.bits}"), self.lanes.at(integer(0))
        T.buffer_store(memory, x, [whole])
        return memory[whole]

    def constant(self, value: float) -> Any:
        return self.lanes.constant(value)

    def add(self, x: Any, y: Any) -> Any:
        return self._kept(x + y)

    def sub(self, x: Any, y: Any) -> Any:
        return self._kept(x - y)

    def mul(self, x: Any, y: Any) -> Any:
        # TVM allows LLVM to fuse a product with the sum that follows. The fence keeps them apart,
        # so that each is rounded.
        return self._kept(self.lanes.call("arithmetic.fence", x * y))

    def div(self, x: Any, y: Any) -> Any:
        return self._kept(x / y)

    def neg(self, x: Any) -> Any:
        # -0.0 - x is -0 for x = 0, where 0 - x would be +0.
        return self._kept(self.lanes.constant(-0.0) - x)

    def multiply_add(self, x: Any, y: Any, z: Any) -> Any:
        return self._kept(self.lanes.multiply_add(x, y, z))

    def call(self, name: str, *values: Any) -> Any:
        return self._kept(self.lanes.call(name, *values))

    def compare(self, symbol: str, x: Any, y: Any) -> Any:
        return _COMPARISONS[symbol](x, y)

    def select(self, condition: Any, x: Any, y: Any) -> Any:
        return self._kept(T.Select(condition, x, y))

    def bits_of(self, x: Any) -> Any:
        return self._kept(T.reinterpret(self.lanes.integer, x), "int")

    def from_bits(self, n: Any) -> Any:
        return self._kept(T.reinterpret(self.lanes.vector, n))

    def integer_constant(self, value: int) -> Any:
        return self.lanes.integers(value)

    def integer_add(self, n: Any, m: Any) -> Any:
        return self._kept(n + m, "int")

    def integer_sub(self, n: Any, m: Any) -> Any:
        return self._kept(n - m, "int")

    def shift_left(self, n: Any, count: int) -> Any:
        return self._kept(T.shift_left(n, self.lanes.integers(count)), "int")

    def shift_right(self, n: Any, count: int) -> Any:
        return self._kept(T.shift_right(n, self.lanes.integers(count)), "int")

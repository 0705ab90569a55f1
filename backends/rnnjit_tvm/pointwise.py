"""The pointwise part of a cell's step and of its gradient, on blocks of rows in place."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import tvm
from tvm.tirx.script.builder import ir as T

from rnnjit.cells import Cell
from rnnjit.codegen.pointwise import lower
from rnnjit_tvm.tensorir import Lanes, Module, integer, loop, when


def add_cell(module: Module, cell: Cell) -> None:
    """PrimFuncs `activate` and `activate_gradient`, which compute one cell.

    Args:
        module: what to add them to.
        cell: one whose `is_elman` holds.
    """
    _add_activate(module, cell)
    _add_activate_gradient(module, cell)


def _add_activate(module: Module, cell: Cell) -> None:
    """`activate(z, ld, rows, columns)`: h = f(z)."""
    lanes = module.lanes
    (accumulator,) = cell.accumulators

    def step(z: Any) -> Any:
        out, *_ = lower(cell.step, _Vectors(lanes), {accumulator.name: T.bind(z)})
        return out

    def body(z: Any, ld: Any, rows: Any, columns: Any) -> None:
        def whole(index: Any) -> None:
            T.buffer_store(z, step(z[lanes.at(index)]), [lanes.at(index)])

        def part(index: Any, count: Any) -> None:
            lanes.store(z, index, step(lanes.load(z, index, count)), count)

        with loop(integer(0), rows) as r:
            _vectors(lanes, r * ld, columns, whole, part)

    module.add("activate", ["z"], ["ld", "rows", "columns"], body)


def _add_activate_gradient(module: Module, cell: Cell) -> None:
    """`activate_gradient(dz, h, grad, ld, ld_grad, rows, columns)`: the gradient of z, in place.

    On entry dz holds the gradient of the new state. `grad` is the gradient of `out`, and h is
    `out`. Rows of dz and h are `ld` elements apart, rows of grad `ld_grad`.
    """
    lanes = module.lanes

    def step(state: Any, h: Any, out: Any) -> Any:
        given = {"out": h, "grad_out": out, f"grad_new_{cell.states[0]}": state}
        inputs = {name: T.bind(given[name]) for name in cell.backward.inputs}
        gradient, *_ = lower(cell.backward, _Vectors(lanes), inputs)
        return lanes.zeros() if gradient is None else gradient

    def body(dz: Any, h: Any, grad: Any, ld: Any, ld_grad: Any, rows: Any, columns: Any) -> None:
        with loop(integer(0), rows) as r:
            # The offset of a row of grad from the same row of dz.
            ahead = T.bind(r * (ld_grad - ld))

            def whole(index: Any) -> None:
                at = lanes.at(index)
                T.buffer_store(dz, step(dz[at], h[at], grad[lanes.at(index + ahead)]), [at])

            def part(index: Any, count: Any) -> None:
                state, here = lanes.load(dz, index, count), lanes.load(h, index, count)
                value = step(state, here, lanes.load(grad, index + ahead, count))
                lanes.store(dz, index, value, count)

            _vectors(lanes, r * ld, columns, whole, part)

    pointers, sizes = ["dz", "h", "grad"], ["ld", "ld_grad", "rows", "columns"]
    module.add("activate_gradient", pointers, sizes, body)


def _vectors(
    lanes: Lanes,
    start: Any,
    columns: Any,
    whole: Callable[[Any], None],
    part: Callable[[Any, Any], None],
) -> None:
    """Call `whole` for each full vector of a row, and `part` for the rest of it."""
    full = T.bind(T.truncdiv(columns, integer(lanes.count)))
    with loop(integer(0), full) as v:
        whole(T.bind(start + v * lanes.count))
    left = T.bind(columns - full * lanes.count)
    with when(left > 0):
        part(T.bind(start + full * lanes.count), left)


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


@dataclass(frozen=True)
class _Vectors:
    """`rnnjit.codegen.pointwise.Vectors` in TensorIR.

    Numbers and integers are bound to variables: TensorIR's expressions are trees, and so a value
    that is used twice would be computed twice. Conditions cannot be bound and are computed anew at
    each use.

    Attributes:
        lanes: the vectors.
    """

    lanes: Lanes

    @property
    def bits(self) -> int:
        return self.lanes.bits

    def constant(self, value: float) -> Any:
        return self.lanes.constant(value)

    def add(self, x: Any, y: Any) -> Any:
        return T.bind(x + y)

    def sub(self, x: Any, y: Any) -> Any:
        return T.bind(x - y)

    def mul(self, x: Any, y: Any) -> Any:
        return T.bind(x * y)

    def div(self, x: Any, y: Any) -> Any:
        return T.bind(x / y)

    def neg(self, x: Any) -> Any:
        # -0.0 - x is -0 for x = 0, where 0 - x would be +0.
        return T.bind(self.lanes.constant(-0.0) - x)

    def multiply_add(self, x: Any, y: Any, z: Any) -> Any:
        return T.bind(self.lanes.multiply_add(x, y, z))

    def call(self, name: str, *values: Any) -> Any:
        return T.bind(self.lanes.call(name, *values))

    def compare(self, symbol: str, x: Any, y: Any) -> Any:
        return _COMPARISONS[symbol](x, y)

    def select(self, condition: Any, x: Any, y: Any) -> Any:
        return T.bind(T.Select(condition, x, y))

    def bits_of(self, x: Any) -> Any:
        return T.bind(T.reinterpret(self.lanes.integer, x))

    def from_bits(self, n: Any) -> Any:
        return T.bind(T.reinterpret(self.lanes.vector, n))

    def integer_constant(self, value: int) -> Any:
        return self.lanes.integers(value)

    def integer_add(self, n: Any, m: Any) -> Any:
        return T.bind(n + m)

    def integer_sub(self, n: Any, m: Any) -> Any:
        return T.bind(n - m)

    def shift_left(self, n: Any, count: int) -> Any:
        return T.bind(T.shift_left(n, self.lanes.integers(count)))

    def shift_right(self, n: Any, count: int) -> Any:
        return T.bind(T.shift_right(n, self.lanes.integers(count)))

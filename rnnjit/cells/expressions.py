"""Expressions over one hidden unit: what of a step depends on a state.

An expression is a value as those of `rnnjit.ir.builder`, so that its functions append to it. Its
leaves are found while tracing, where a program needs its inputs first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from rnnjit.ir.builder import Builder, Value
from rnnjit.ir.operations import OPERATIONS, Kind

if TYPE_CHECKING:
    from rnnjit.cells.graph import Node

#: What an expression may depend on.
STATE, PARAMETER, ROW, DRAW, INPUT, PRODUCT, GRADIENT = (
    *("state", "parameter", "x", "draw", "linear map of x", "product"),
    "gradient",
)


class Expression(Value):
    """A value for each hidden unit.

    Attributes:
        operation: an operation of the IR, or what kind of leaf it is.
        arguments, constants: of the operation.
        node: the tensor that a leaf is, if it is a parameter or a row input.
        place: of other leaves, which: the number of a state, or of a linear map and of its block.
        kind: a number or a condition.
        grad: whether gradients pass to a leaf.
        sources: what it depends on.
    """

    __slots__ = ("arguments", "constants", "grad", "kind", "node", "operation", "place", "sources")

    operation: str
    arguments: tuple[Expression, ...]
    constants: tuple[float, ...]
    node: Node | None
    place: tuple[int, ...]
    kind: Kind
    grad: bool
    sources: frozenset[str]


class Pool(Builder):
    """The expressions of a trace; one that exists already is reused."""

    def __init__(self) -> None:
        super().__init__([])
        self.values: list[Expression] = []
        self._known: dict[tuple[object, ...], Expression] = {}

    def append(
        self, operation: str, arguments: Iterable[Value | float], constants: Iterable[float] = ()
    ) -> Expression:
        """The expression of an operation; Python numbers become constants."""
        given = tuple(self.expression(each) for each in arguments)
        fixed = tuple(map(float, constants))
        key = (operation, *(each.number for each in given), *map(repr, fixed))
        if (found := self._known.get(key)) is not None:
            return found
        sources = frozenset().union(*(each.sources for each in given))
        grad = operation != "detach" and any(each.grad for each in given)
        self._known[key] = self._new(
            operation, given, fixed, None, (), OPERATIONS[operation].result, grad, sources
        )
        return self._known[key]

    def leaf(
        self, source: str, place: tuple[int, ...] = (), node: Node | None = None
    ) -> Expression:
        """The expression of a leaf."""
        key = (source, place, None if node is None else node.number)
        if key not in self._known:
            sources = frozenset((source,))
            self._known[key] = self._new(source, (), (), node, place, Kind.NUMBER, True, sources)
        return self._known[key]

    def expression(self, value: Value | float) -> Expression:
        """The expression of a value, or of a Python number."""
        if isinstance(value, Expression):
            return value
        assert isinstance(value, (int, float)), value
        return self.append("constant", (), (float(value),))

    def number(self, value: Value | float) -> Expression:
        """A value as a number: 1 or 0 if it is a condition."""
        found = self.expression(value)
        if found.kind is Kind.CONDITION:
            return self.append("where", (found, 1.0, 0.0))
        return found

    def condition(self, value: Value | float) -> Expression:
        """A value as a condition: whether it is not 0, if it is a number."""
        found = self.expression(value)
        return self.append("ne", (found, 0.0)) if found.kind is Kind.NUMBER else found

    def _new(
        self,
        operation: str,
        arguments: tuple[Expression, ...],
        constants: tuple[float, ...],
        node: Node | None,
        place: tuple[int, ...],
        kind: Kind,
        grad: bool,
        sources: frozenset[str],
    ) -> Expression:
        found = Expression(self, len(self.values))
        found.operation, found.arguments, found.constants = operation, arguments, constants
        found.node, found.place = node, place
        found.kind, found.grad, found.sources = kind, grad, sources
        self.values.append(found)
        return found


def reached(outputs: Iterable[Expression]) -> list[Expression]:
    """These expressions and all that they are computed from, arguments first."""
    found: dict[int, Expression] = {}
    waiting = list(outputs)
    while waiting:
        value = waiting.pop()
        if value.number not in found:
            found[value.number] = value
            waiting += value.arguments
    return [found[number] for number in sorted(found)]


def slope_of(value: Expression, gradient: Expression) -> Expression | None:
    """The factor s if the value is s times a gradient by its form; else None.

    The factor does not depend on the gradient. A value without the gradient is none of its
    multiples, unless it is the constant 0.
    """
    pool = gradient.builder
    assert isinstance(pool, Pool)
    found: dict[int, Expression | None] = {}
    for each in reached([value]):
        found[each.number] = _slope(pool, each, gradient, found)
    return found[value.number]


def _slope(
    pool: Pool, value: Expression, gradient: Expression, found: dict[int, Expression | None]
) -> Expression | None:
    if value.number == gradient.number:
        return pool.expression(1.0)
    if GRADIENT not in value.sources:
        zero = value.operation == "constant" and value.constants[0] == 0.0
        return value if zero else None
    parts = [found[each.number] for each in value.arguments]
    free = [GRADIENT not in each.sources for each in value.arguments]
    rule = _LINEAR.get(value.operation)
    return None if rule is None else rule(pool, value.arguments, parts, free)


_Parts = list[Expression | None]
_Given = tuple[Expression, ...]


def _product(pool: Pool, given: _Given, parts: _Parts, free: list[bool]) -> Expression | None:
    for linear, other in ((0, 1), (1, 0)):
        slope = parts[linear]
        if slope is not None and free[other] and not free[linear]:
            one = slope.operation == "constant" and slope.constants[0] == 1.0
            return given[other] if one else pool.append("mul", (slope, given[other]))
    return None


def _quotient(pool: Pool, given: _Given, parts: _Parts, free: list[bool]) -> Expression | None:
    if parts[0] is None or not free[1]:
        return None
    return pool.append("div", (parts[0], given[1]))


def _each(operation: str, first: int) -> Callable[..., Expression | None]:
    """The rule of an operation that is linear in its arguments from number `first` on."""

    def rule(pool: Pool, given: _Given, parts: _Parts, free: list[bool]) -> Expression | None:
        slopes = [each for each in parts[first:] if each is not None]
        if len(slopes) < len(parts) - first or not all(free[:first]):
            return None
        return pool.append(operation, (*given[:first], *slopes))

    return rule


def _same(pool: Pool, given: _Given, parts: _Parts, free: list[bool]) -> Expression | None:
    return parts[0]


_LINEAR: dict[str, Callable[..., Expression | None]] = {
    "mul": _product,
    "div": _quotient,
    "neg": _each("neg", 0),
    "add": _each("add", 0),
    "sub": _each("sub", 0),
    "where": _each("where", 1),
    "detach": _same,
}

"""Traces Python functions to programs: operators on traced values append instructions.

>>> trace(lambda h, z: sigmoid(z) * h, ["h", "z"])
Program.parse('(h, z) %2 = sigmoid(%1); %3 = mul(%2, %0); return %3')
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NoReturn

from rnnjit.ir.operations import Kind
from rnnjit.ir.program import Instruction, Program, result_kind


class Builder:
    """A program under construction. An instruction that exists already is reused.

    Attributes:
        inputs: the values of the inputs.
        instructions: the instructions so far.
    """

    def __init__(self, inputs: Sequence[str]) -> None:
        """Start a program with inputs of these names."""
        self._names = tuple(inputs)
        self._kinds = [Kind.NUMBER] * len(self._names)
        self._computed: dict[str, Value] = {}
        self.inputs = tuple(Value(self, number) for number in range(len(self._names)))
        self.instructions: list[Instruction] = []

    def append(
        self, operation: str, arguments: Iterable[Value | float], constants: Iterable[float] = ()
    ) -> Value:
        """Append an operation and return its value; Python numbers become constants."""
        instruction = Instruction(
            operation,
            tuple(self._number(argument, operation) for argument in arguments),
            tuple(map(float, constants)),
        )
        if (found := self._computed.get(str(instruction))) is not None:
            return found
        self._kinds.append(result_kind(instruction, self._kinds))
        self.instructions.append(instruction)
        value = Value(self, len(self._kinds) - 1)
        self._computed[str(instruction)] = value
        return value

    def replay(self, instruction: Instruction, values: Sequence[Value]) -> Value:
        """Append an instruction of another program; `values` are that program's values here."""
        arguments = [values[number] for number in instruction.arguments]
        return self.append(instruction.operation, arguments, instruction.constants)

    def finish(self, outputs: Iterable[Value | float | None]) -> Program:
        """Return the program with these outputs."""
        numbers = [None if each is None else self._number(each, "output") for each in outputs]
        return Program(self._names, tuple(self.instructions), tuple(numbers))

    def _number(self, argument: Value | float, operation: str) -> int:
        if isinstance(argument, Value):
            if argument.builder is not self:
                raise ValueError(f"{operation}: expected values of one program, got another's")
            return argument.number
        # A bool is an int, but here it is most likely a condition that was not traced.
        if isinstance(argument, bool) or not isinstance(argument, (int, float)):
            raise TypeError(f"{operation}: expected a traced value or a number, got {argument!r}")
        return self.append("constant", (), (argument,)).number


class Value:
    """A value of a program under construction; arithmetic and comparisons append instructions."""

    __slots__ = ("builder", "number")

    def __init__(self, builder: Builder, number: int) -> None:
        self.builder = builder
        self.number = number

    def __repr__(self) -> str:
        return f"<value %{self.number}>"

    def __bool__(self) -> NoReturn:
        raise TypeError("a traced value is neither true nor false: use where(condition, x, y)")

    def __add__(self, other: Value | float) -> Value:
        return _apply("add", self, other)

    def __radd__(self, other: float) -> Value:
        return _apply("add", other, self)

    def __sub__(self, other: Value | float) -> Value:
        return _apply("sub", self, other)

    def __rsub__(self, other: float) -> Value:
        return _apply("sub", other, self)

    def __mul__(self, other: Value | float) -> Value:
        return _apply("mul", self, other)

    def __rmul__(self, other: float) -> Value:
        return _apply("mul", other, self)

    def __truediv__(self, other: Value | float) -> Value:
        return _apply("div", self, other)

    def __rtruediv__(self, other: float) -> Value:
        return _apply("div", other, self)

    def __neg__(self) -> Value:
        return _apply("neg", self)

    def __abs__(self) -> Value:
        return _apply("abs", self)

    def __lt__(self, other: Value | float) -> Value:
        return _apply("lt", self, other)

    def __le__(self, other: Value | float) -> Value:
        return _apply("le", self, other)

    def __gt__(self, other: Value | float) -> Value:
        return _apply("gt", self, other)

    def __ge__(self, other: Value | float) -> Value:
        return _apply("ge", self, other)

    def __eq__(self, other: object) -> Value:  # type: ignore[override]  # as torch's and numpy's
        return _apply("eq", self, other)  # type: ignore[arg-type]  # appending checks it

    def __ne__(self, other: object) -> Value:  # type: ignore[override]
        return _apply("ne", self, other)  # type: ignore[arg-type]

    __hash__ = object.__hash__


def trace(
    function: Callable[..., Value | float | Sequence[Value | float | None] | None],
    inputs: Sequence[str],
) -> Program:
    """Trace a function to a program.

    Args:
        function: takes one `Value` per input, returns one output or a tuple or list of outputs.
        inputs: names of the inputs.

    Raises:
        ValueError: as for `Program`.
        TypeError: as for `Program`, or the function uses a traced value as a bool.
    """
    builder = Builder(inputs)
    outputs = function(*builder.inputs)
    if isinstance(outputs, Value) or not isinstance(outputs, Sequence):
        outputs = [outputs]
    return builder.finish(outputs)


def _apply(operation: str, *arguments: Value | float, constants: Iterable[float] = ()) -> Value:
    for argument in arguments:
        if isinstance(argument, Value):
            return argument.builder.append(operation, arguments, constants)
    raise TypeError(f"{operation}: expected a traced value, got {arguments}")


def exp(x: Value) -> Value:
    """The exponential function."""
    return _apply("exp", x)


def log(x: Value) -> Value:
    """The natural logarithm."""
    return _apply("log", x)


def log1p(x: Value) -> Value:
    """log(1 + x)."""
    return _apply("log1p", x)


def expm1(x: Value) -> Value:
    """exp(x) - 1."""
    return _apply("expm1", x)


def sqrt(x: Value) -> Value:
    """The square root."""
    return _apply("sqrt", x)


def tanh(x: Value) -> Value:
    """The hyperbolic tangent."""
    return _apply("tanh", x)


def sigmoid(x: Value) -> Value:
    """The logistic function, 1 / (1 + exp(-x))."""
    return _apply("sigmoid", x)


def relu(x: Value) -> Value:
    """The positive part, x < 0 ? 0 : x; its gradient at 0 is 0."""
    return _apply("relu", x)


def leaky_relu(x: Value, slope: float = 0.01) -> Value:
    """The function x > 0 ? x : slope * x."""
    return _apply("leaky_relu", x, constants=(slope,))


def softplus(x: Value) -> Value:
    """The function x > 20 ? x : log1p(exp(x))."""
    return _apply("softplus", x)


def silu(x: Value) -> Value:
    """The function x * sigmoid(x)."""
    return _apply("silu", x)


def sign(x: Value) -> Value:
    """-1, 0 or 1; 0 for NaN."""
    return _apply("sign", x)


def minimum(x: Value | float, y: Value | float) -> Value:
    """The smaller one, NaN if either is; at a tie each gets half the gradient."""
    return _apply("minimum", x, y)


def maximum(x: Value | float, y: Value | float) -> Value:
    """The larger one, NaN if either is; at a tie each gets half the gradient."""
    return _apply("maximum", x, y)


def clamp(x: Value, low: float = -float("inf"), high: float = float("inf")) -> Value:
    """min(max(x, low), high); the gradient passes at the bounds."""
    return _apply("clamp", x, constants=(low, high))


def where(condition: Value, x: Value | float, y: Value | float) -> Value:
    """Either x, where the condition holds, or y."""
    return _apply("where", condition, x, y)


def detach(x: Value) -> Value:
    """The same value, as a constant to differentiation."""
    return _apply("detach", x)


def with_slope(value: Value, x: Value, slope: Value | float) -> Value:
    """The value, whose gradient also passes to x, times slope."""
    return _apply("with_slope", value, x, slope)

"""The operations of a cell's program as code on one vector, for any way of writing vectors.

A backend implements `Vectors` by the compiler that it writes for, and lowers a program with
`lower`. What each operation means, NaN, infinities and signed zeros included, is said in
`rnnjit.cells.operations`; `rnnjit.codegen.elementary` says how exp and tanh are computed.

Operations that need log are not lowered, and neither is expm1: exp(r) - 1 is accurate near 0 alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, Protocol

from rnnjit.cells import Program, evaluate
from rnnjit.codegen.elementary import CONSTANTS


class Vectors(Protocol):
    """Code on vectors of one floating-point type, and on integers as wide and conditions.

    Values are whatever stands for a vector in a compiler's code; each method emits an instruction
    and gives its result.
    """

    @property
    def bits(self) -> int:
        """Of an element, 32 or 64."""
        ...

    def constant(self, value: float) -> Any:
        """A number in every lane."""
        ...

    def add(self, x: Any, y: Any) -> Any:
        """The sum of two vectors of numbers; as the next three, rounded once."""
        ...

    def sub(self, x: Any, y: Any) -> Any:
        """The difference."""
        ...

    def mul(self, x: Any, y: Any) -> Any:
        """The product."""
        ...

    def div(self, x: Any, y: Any) -> Any:
        """The quotient."""
        ...

    def neg(self, x: Any) -> Any:
        """The opposite; of 0 it is -0."""
        ...

    def multiply_add(self, x: Any, y: Any, z: Any) -> Any:
        """The sum x * y + z, rounded once where the machine can."""
        ...

    def call(self, name: str, *values: Any) -> Any:
        """LLVM's function `llvm.<name>` of vectors of numbers: fabs, sqrt or copysign."""
        ...

    def compare(self, symbol: str, x: Any, y: Any) -> Any:
        """The condition x < y, or what else the symbol says; of NaN only != holds."""
        ...

    def select(self, condition: Any, x: Any, y: Any) -> Any:
        """The number x where a condition holds, else y; both are computed."""
        ...

    def bits_of(self, x: Any) -> Any:
        """The bits of numbers, as integers."""
        ...

    def from_bits(self, n: Any) -> Any:
        """The numbers whose bits integers are."""
        ...

    def integer_constant(self, value: int) -> Any:
        """An integer in every lane."""
        ...

    def integer_add(self, n: Any, m: Any) -> Any:
        """The sum of integers, modulo their width."""
        ...

    def integer_sub(self, n: Any, m: Any) -> Any:
        """The difference of integers, modulo their width."""
        ...

    def shift_left(self, n: Any, count: int) -> Any:
        """Integers times 2^count, modulo their width."""
        ...

    def shift_right(self, n: Any, count: int) -> Any:
        """Signed integers over 2^count, rounded down."""
        ...


def lower(program: Program, v: Vectors, inputs: Mapping[str, Any]) -> tuple[Any | None, ...]:
    """Emits a program.

    Args:
        program: what to emit.
        v: emits it.
        inputs: a vector for each input that the program uses, by its name.

    Returns:
        A vector for each output, None where the program has none.
    """
    table = {name: partial(emit, v) for name, emit in _EMITTERS.items()}
    values = [inputs.get(name) for name in program.inputs]
    return evaluate(program, values, table, v.constant)


def _reduced_exp(v: Vectors, y: Any) -> tuple[Any, Any]:
    """Numbers m and p with exp(y) = 2^n (1 + p), n being the integer in the low bits of m."""
    k = CONSTANTS[v.bits]
    shift = v.constant(k.round_shift)
    shifted = v.multiply_add(y, v.constant(1.0 / math.log(2.0)), shift)
    n = v.sub(shifted, shift)
    r = v.multiply_add(n, v.constant(-k.ln2_high), y)
    r = v.multiply_add(n, v.constant(-k.ln2_low), r)
    p = v.constant(1.0 / math.factorial(k.degree))
    for power in range(k.degree - 1, 1, -1):
        p = v.multiply_add(p, r, v.constant(1.0 / math.factorial(power)))
    return shifted, v.multiply_add(v.mul(r, r), p, r)


def _power_of_two(v: Vectors, n: Any) -> Any:
    """2^n for integers n, of which only the low bits count, within the range of exponents."""
    k = CONSTANTS[v.bits]
    return v.from_bits(v.shift_left(v.integer_add(n, v.integer_constant(k.bias)), k.mantissa_bits))


def _tanh(v: Vectors, x: Any) -> Any:
    size = _at_most(v, v.call("fabs", x), CONSTANTS[v.bits].tanh_saturation)
    shifted, p = _reduced_exp(v, v.add(size, size))
    scale = _power_of_two(v, v.bits_of(shifted))
    one, two = v.constant(1.0), v.constant(2.0)
    e = v.multiply_add(scale, p, v.sub(scale, one))
    far = v.compare(">", e, two)
    ratio = v.div(v.select(far, two, e), v.add(e, two))
    return v.call("copysign", v.select(far, v.sub(one, ratio), ratio), x)


def _exp(v: Vectors, x: Any) -> Any:
    k = CONSTANTS[v.bits]
    shifted, p = _reduced_exp(v, _clamp(v, x, k.exp_low, k.exp_high))
    n = v.integer_sub(v.bits_of(shifted), v.bits_of(v.constant(k.round_shift)))
    # 2^n may be too large or too small for a normal number. Powers of its halves are not, and only
    # the second multiplication rounds.
    half = v.shift_right(n, 1)
    value = v.add(p, v.constant(1.0))
    for part in (half, v.integer_sub(n, half)):
        value = v.mul(value, _power_of_two(v, part))
    return value


def _sigmoid(v: Vectors, x: Any) -> Any:
    one = v.constant(1.0)
    return v.div(one, v.add(one, _exp(v, v.neg(x))))


def _silu(v: Vectors, x: Any) -> Any:
    return v.div(x, v.add(v.constant(1.0), _exp(v, v.neg(x))))


def _relu(v: Vectors, x: Any) -> Any:
    return _at_least(v, x, 0.0)


def _leaky_relu(v: Vectors, x: Any, slope: float) -> Any:
    return v.select(v.compare(">", x, v.constant(0.0)), x, v.mul(x, v.constant(slope)))


def _sign(v: Vectors, x: Any) -> Any:
    zero = v.constant(0.0)
    negative = v.select(v.compare("<", x, zero), v.constant(-1.0), zero)
    return v.select(v.compare(">", x, zero), v.constant(1.0), negative)


def _minimum(v: Vectors, x: Any, y: Any) -> Any:
    return _extremum(v, "<", x, y)


def _maximum(v: Vectors, x: Any, y: Any) -> Any:
    return _extremum(v, ">", x, y)


def _extremum(v: Vectors, symbol: str, x: Any, y: Any) -> Any:
    # A comparison with NaN does not hold, which gives y.
    return v.select(v.compare("!=", x, x), x, v.select(v.compare(symbol, x, y), x, y))


def _at_least(v: Vectors, x: Any, low: float) -> Any:
    # Where the comparison does not hold x is kept, so that NaN stays NaN.
    bound = v.constant(low)
    return v.select(v.compare("<", x, bound), bound, x)


def _at_most(v: Vectors, x: Any, high: float) -> Any:
    bound = v.constant(high)
    return v.select(v.compare(">", x, bound), bound, x)


def _clamp(v: Vectors, x: Any, low: float, high: float) -> Any:
    return _at_most(v, _at_least(v, x, low), high)


def _tanh_backward(v: Vectors, grad: Any, result: Any) -> Any:
    return v.mul(grad, v.multiply_add(v.neg(result), result, v.constant(1.0)))


def _sigmoid_backward(v: Vectors, grad: Any, result: Any) -> Any:
    return v.mul(v.mul(grad, v.sub(v.constant(1.0), result)), result)


def _relu_backward(v: Vectors, grad: Any, result: Any) -> Any:
    zero = v.constant(0.0)
    return v.select(v.compare("<=", result, zero), zero, grad)


#: By the operation's name: a function of `Vectors`, the arguments and then the constants.
_EMITTERS: Mapping[str, Callable[..., Any]] = MappingProxyType(
    {
        "add": lambda v, x, y: v.add(x, y),
        "sub": lambda v, x, y: v.sub(x, y),
        "mul": lambda v, x, y: v.mul(x, y),
        "div": lambda v, x, y: v.div(x, y),
        "neg": lambda v, x: v.neg(x),
        "exp": _exp,
        "sqrt": lambda v, x: v.call("sqrt", x),
        "tanh": _tanh,
        "sigmoid": _sigmoid,
        "relu": _relu,
        "leaky_relu": _leaky_relu,
        "silu": _silu,
        "abs": lambda v, x: v.call("fabs", x),
        "sign": _sign,
        "minimum": _minimum,
        "maximum": _maximum,
        "clamp": _clamp,
        "lt": lambda v, x, y: v.compare("<", x, y),
        "le": lambda v, x, y: v.compare("<=", x, y),
        "gt": lambda v, x, y: v.compare(">", x, y),
        "ge": lambda v, x, y: v.compare(">=", x, y),
        "eq": lambda v, x, y: v.compare("==", x, y),
        "ne": lambda v, x, y: v.compare("!=", x, y),
        "where": lambda v, condition, x, y: v.select(condition, x, y),
        "detach": lambda v, x: x,
        "tanh_backward": _tanh_backward,
        "sigmoid_backward": _sigmoid_backward,
        "relu_backward": _relu_backward,
    }
)

#: Names of the operations that `lower` knows.
OPERATIONS = frozenset(_EMITTERS) | {"constant"}

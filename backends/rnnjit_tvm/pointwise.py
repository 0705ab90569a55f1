"""The operations of a cell's programs, on vectors of TensorIR.

A number that a formula uses twice is bound: TensorIR's expressions are trees, in which it would be
computed twice. Conditions are compared anew where they are used, since TensorIR binds none. Nothing
here imports tvm, so that what is lowered is known without it. For tanh see `rnnjit.codegen.tanh`;
exp is reduced in the same way.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from rnnjit import cells
from rnnjit.cells import Kind, Program, evaluate
from rnnjit.codegen import TANH

if TYPE_CHECKING:
    from rnnjit_tvm.tensorir import Lanes

#: What exp is computed of, by the width of an element: below and above, it is 0 and infinite.
_EXP_RANGE = {32: (-104.5, 89.0), 64: (-746.0, 710.0)}


def lower(lanes: Lanes, program: Program, inputs: Sequence[Any]) -> tuple[Any | None, ...]:
    """The outputs of a program on vectors, each number of it computed once.

    Args:
        lanes: the vectors.
        program: its operations are all in `OPERATIONS`.
        inputs: bound values, one per input.
    """

    def operation(name: str) -> Callable[..., Any]:
        function = partial(OPERATIONS[name], lanes)
        if cells.OPERATIONS[name].result is Kind.CONDITION:
            return function
        return lambda *arguments: lanes.bind(function(*arguments))

    operations = {name: operation(name) for name in OPERATIONS}
    return evaluate(program, inputs, operations, lanes.constant)


def _tanh(lanes: Lanes, x: Any) -> Any:
    k = TANH[lanes.bits]
    size = lanes.bind(lanes.call("fabs", x))
    limit = lanes.constant(k.saturation)
    size = lanes.bind(lanes.select(size > limit, limit, size))
    shifted, p = _reduced(lanes, size + size)
    bits = lanes.reinterpret(shifted, lanes.integer)
    scale = _power_of_two(lanes, bits)
    e = lanes.bind(lanes.multiply_add(scale, p, scale - lanes.constant(1.0)))
    two = lanes.constant(2.0)
    ratio = lanes.bind(lanes.select(e > two, two, e) / (e + two))
    value = lanes.select(e > two, lanes.constant(1.0) - ratio, ratio)
    return lanes.call("copysign", value, x)


def _exp(lanes: Lanes, x: Any) -> Any:
    """2^n exp(r), by two powers of two: one alone may be out of range where the result is not."""
    k = TANH[lanes.bits]
    low, high = (lanes.constant(limit) for limit in _EXP_RANGE[lanes.bits])
    x = lanes.bind(lanes.select(x < low, low, x))
    x = lanes.bind(lanes.select(x > high, high, x))
    shifted, p = _reduced(lanes, x)
    # What round_shift is as an integer; n has been added to its last bits.
    zero = ((k.bias + k.mantissa_bits) << k.mantissa_bits) + (1 << (k.mantissa_bits - 1))
    n = lanes.bind(lanes.reinterpret(shifted, lanes.integer) - lanes.integers(zero))
    half = lanes.bind(lanes.shift_right(n, 1))
    scale = _power_of_two(lanes, half)
    return lanes.multiply_add(scale, p, scale) * _power_of_two(lanes, n - half)


def _reduced(lanes: Lanes, y: Any) -> tuple[Any, Any]:
    """`n + round_shift` and `exp(r) - 1`, where y = n ln(2) + r and |r| <= ln(2) / 2."""
    k = TANH[lanes.bits]
    y, shift = lanes.bind(y), lanes.constant(k.round_shift)
    shifted = lanes.bind(lanes.multiply_add(y, lanes.constant(1.0 / math.log(2.0)), shift))
    n = lanes.bind(shifted - shift)
    r = lanes.bind(lanes.multiply_add(n, lanes.constant(-k.ln2_high), y))
    r = lanes.bind(lanes.multiply_add(n, lanes.constant(-k.ln2_low), r))
    p = lanes.constant(1.0 / math.factorial(k.degree))
    for power in range(k.degree - 1, 1, -1):
        p = lanes.bind(lanes.multiply_add(p, r, lanes.constant(1.0 / math.factorial(power))))
    return shifted, lanes.bind(lanes.multiply_add(r * r, p, r))


def _power_of_two(lanes: Lanes, n: Any) -> Any:
    """2^n of integers, of which the exponent's bits and those above the mantissa's count."""
    k = TANH[lanes.bits]
    exponent = lanes.shift_left(n + lanes.integers(k.bias), k.mantissa_bits)
    return lanes.bind(lanes.reinterpret(exponent, lanes.vector))


def _sigmoid(lanes: Lanes, x: Any) -> Any:
    one = lanes.constant(1.0)
    return one / (one + _exp(lanes, lanes.bind(_neg(lanes, x))))


def _neg(lanes: Lanes, x: Any) -> Any:
    # Of 0 it is -0, which 0 - x would not be.
    return lanes.constant(-0.0) - x


def _relu(lanes: Lanes, x: Any) -> Any:
    return lanes.select(x < lanes.zeros(), lanes.zeros(), x)


def _leaky_relu(lanes: Lanes, x: Any, slope: float) -> Any:
    return lanes.select(x > lanes.zeros(), x, x * lanes.constant(slope))


def _sign(lanes: Lanes, x: Any) -> Any:
    negative = lanes.select(x < lanes.zeros(), lanes.constant(-1.0), lanes.zeros())
    return lanes.select(x > lanes.zeros(), lanes.constant(1.0), negative)


def _minimum(lanes: Lanes, x: Any, y: Any) -> Any:
    # A comparison with NaN is false: the inner one gives y then, and the outer one x.
    return lanes.select(lanes.equal(x, x), lanes.select(x < y, x, y), x)


def _maximum(lanes: Lanes, x: Any, y: Any) -> Any:
    return lanes.select(lanes.equal(x, x), lanes.select(x > y, x, y), x)


def _clamp(lanes: Lanes, x: Any, low: float, high: float) -> Any:
    lower, upper = lanes.constant(low), lanes.constant(high)
    raised = lanes.bind(lanes.select(x < lower, lower, x))
    return lanes.select(raised > upper, upper, raised)


def _tanh_backward(lanes: Lanes, grad: Any, h: Any) -> Any:
    return grad * lanes.multiply_add(lanes.zeros() - h, h, lanes.constant(1.0))


def _sigmoid_backward(lanes: Lanes, grad: Any, h: Any) -> Any:
    return grad * (lanes.constant(1.0) - h) * h


def _relu_backward(lanes: Lanes, grad: Any, h: Any) -> Any:
    return lanes.select(h <= lanes.zeros(), lanes.zeros(), grad)


#: By its name, each operation as a function of the vectors and its bound arguments; constants of
#: the operation follow them.
OPERATIONS: Mapping[str, Callable[..., Any]] = MappingProxyType(
    {
        "add": lambda lanes, x, y: x + y,
        "sub": lambda lanes, x, y: x - y,
        "mul": lambda lanes, x, y: x * y,
        "div": lambda lanes, x, y: x / y,
        "neg": _neg,
        "exp": _exp,
        "sqrt": lambda lanes, x: lanes.call("sqrt", x),
        "tanh": _tanh,
        "sigmoid": _sigmoid,
        "relu": _relu,
        "leaky_relu": _leaky_relu,
        "abs": lambda lanes, x: lanes.call("fabs", x),
        "sign": _sign,
        "minimum": _minimum,
        "maximum": _maximum,
        "clamp": _clamp,
        "lt": lambda lanes, x, y: x < y,
        "le": lambda lanes, x, y: x <= y,
        "gt": lambda lanes, x, y: x > y,
        "ge": lambda lanes, x, y: x >= y,
        "eq": lambda lanes, x, y: lanes.equal(x, y),
        "ne": lambda lanes, x, y: lanes.unequal(x, y),
        "where": lambda lanes, condition, x, y: lanes.select(condition, x, y),
        "detach": lambda lanes, x: x,
        "tanh_backward": _tanh_backward,
        "sigmoid_backward": _sigmoid_backward,
        "relu_backward": _relu_backward,
    }
)

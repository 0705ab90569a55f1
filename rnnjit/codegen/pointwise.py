"""Lowers the operations of a cell's program to vector code, for any compiler.

A backend implements `Vectors` with its compiler, and lowers a program with `lower`.
`rnnjit.ir.operations` defines the operations, also for NaN, infinities and signed zeros;
`rnnjit.codegen.elementary` explains the method for exp, log and what follows from them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, Protocol

from rnnjit.codegen.elementary import CONSTANTS
from rnnjit.ir import Program, evaluate


class Vectors(Protocol):
    """Emits code on vectors of one floating-point type, integers of the same width, and masks.

    A value is the compiler's object for a vector; each method emits an instruction and returns its
    result.
    """

    @property
    def bits(self) -> int:
        """The width of an element, 32 or 64."""
        ...

    def constant(self, value: float) -> Any:
        """A number in every lane."""
        ...

    def add(self, x: Any, y: Any) -> Any:
        """The sum of two vectors of numbers, rounded once, like the next three."""
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
        """The negation; of 0 it is -0."""
        ...

    def multiply_add(self, x: Any, y: Any, z: Any) -> Any:
        """The sum x * y + z, rounded once if the machine has a fused multiply-add."""
        ...

    def call(self, name: str, *values: Any) -> Any:
        """LLVM's intrinsic `llvm.<name>` on vectors of numbers: fabs, sqrt or copysign."""
        ...

    def compare(self, symbol: str, x: Any, y: Any) -> Any:
        """The mask of a comparison such as "<"; with NaN only "!=" holds."""
        ...

    def select(self, condition: Any, x: Any, y: Any) -> Any:
        """The number x where the mask is true, else y."""
        ...

    def bits_of(self, x: Any) -> Any:
        """Numbers reinterpreted as integers, bit by bit."""
        ...

    def from_bits(self, n: Any) -> Any:
        """Integers reinterpreted as numbers, bit by bit."""
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
        """Signed integers divided by 2^count, rounded down."""
        ...


def lower(program: Program, v: Vectors, inputs: Mapping[str, Any]) -> tuple[Any | None, ...]:
    """Emit the code of a program.

    Args:
        program: the program.
        v: emits the instructions.
        inputs: by name, a vector for each input that the program uses.

    Returns:
        A vector for each output, None for an output that is None.

    Raises:
        NotImplementedError: the program has an operation that is not in `OPERATIONS`.
    """
    table = {name: partial(emit, v) for name, emit in _EMITTERS.items()}
    values = [inputs.get(name) for name in program.inputs]
    return evaluate(program, values, table, v.constant)


def _reduced_exp(v: Vectors, y: Any, *, doubled: bool = False) -> tuple[Any, Any]:
    """Numbers m and p with exp(y) = 2^n (1 + p), where the low bits of m hold the integer n.

    If `doubled`, exp(2y) = 2^n (1 + 2p).
    """
    k, factor = CONSTANTS[v.bits], 2.0 if doubled else 1.0
    shift = v.constant(k.round_shift)
    shifted = v.multiply_add(y, v.constant(factor / math.log(2.0)), shift)
    n = v.sub(shifted, shift)
    r = v.multiply_add(n, v.constant(-k.ln2_high / factor), y)
    r = v.multiply_add(n, v.constant(-k.ln2_low / factor), r)
    # With r = factor r', exp(r) - 1 is factor (r' + r'^2 q(r')), and every rounding is the same.
    q = v.constant(factor ** (k.degree - 1) / math.factorial(k.degree))
    for power in range(k.degree - 1, 1, -1):
        q = v.multiply_add(q, r, v.constant(factor ** (power - 1) / math.factorial(power)))
    return shifted, v.multiply_add(v.mul(r, r), q, r)


def _power_of_two(v: Vectors, n: Any, *, halved: bool = False) -> Any:
    """2^n, or its half, in the range of normal exponents; the high bits of n are ignored."""
    k = CONSTANTS[v.bits]
    bias = v.integer_constant(k.bias - halved)
    return v.from_bits(v.shift_left(v.integer_add(n, bias), k.mantissa_bits))


def _tanh(v: Vectors, x: Any) -> Any:
    size = _at_most(v, v.call("fabs", x), CONSTANTS[v.bits].tanh_saturation)
    shifted, p = _reduced_exp(v, size, doubled=True)
    scale = _power_of_two(v, v.bits_of(shifted))
    one, half = v.constant(1.0), v.constant(0.5)
    e = v.multiply_add(scale, p, v.multiply_add(scale, half, v.constant(-0.5)))
    far = v.compare(">", e, one)
    ratio = v.div(v.select(far, one, e), v.add(e, one))
    return v.call("copysign", v.select(far, v.sub(one, ratio), ratio), x)


def _exp(v: Vectors, x: Any) -> Any:
    k = CONSTANTS[v.bits]
    shifted, p = _reduced_exp(v, _clamp(v, x, k.exp_low, k.exp_high))
    n = v.integer_sub(v.bits_of(shifted), v.bits_of(v.constant(k.round_shift)))
    # 2^n may be outside the range of normal numbers. So n is split into two halves, whose powers
    # are in range; only the second multiplication rounds.
    half = v.shift_right(n, 1)
    value = v.add(p, v.constant(1.0))
    for part in (half, v.integer_sub(n, half)):
        value = v.mul(value, _power_of_two(v, part))
    return value


def _log_of(v: Vectors, x: Any, scaled_by: Any = None, rest: Any = None) -> Any:
    """The logarithm of x / 2^scaled_by, plus rest, which is much smaller; x is a normal number."""
    k = CONSTANTS[v.bits]
    half = v.bits_of(v.constant(math.sqrt(0.5)))
    n = v.shift_right(v.integer_sub(v.bits_of(x), half), k.mantissa_bits)
    reduced = v.from_bits(v.integer_sub(v.bits_of(x), v.shift_left(n, k.mantissa_bits)))
    shift = v.constant(k.round_shift)
    number = v.sub(v.from_bits(v.integer_add(n, v.bits_of(shift))), shift)
    if scaled_by is not None:
        number = v.sub(number, scaled_by)
    return _log_reduced(v, reduced, number, rest)


def _log_reduced(v: Vectors, reduced: Any, n: Any, rest: Any) -> Any:
    """The logarithm of 2^n reduced, plus rest, where sqrt(1/2) <= reduced < sqrt(2)."""
    k = CONSTANTS[v.bits]
    f = v.sub(reduced, v.constant(1.0))
    s = v.div(f, v.add(f, v.constant(2.0)))
    z = v.mul(s, s)
    t = v.constant(2.0 / (2 * k.terms + 1))
    for term in range(k.terms - 1, 0, -1):
        t = v.multiply_add(t, z, v.constant(2.0 / (2 * term + 1)))
    less = v.mul(s, v.sub(f, v.mul(z, t)))
    less = v.multiply_add(n, v.constant(-k.ln2_low), less)
    if rest is not None:
        less = v.sub(less, rest)
    return v.multiply_add(n, v.constant(k.ln2_high), v.sub(f, less))


def _log(v: Vectors, x: Any) -> Any:
    k = CONSTANTS[v.bits]
    # A subnormal number has no exponent of its own: it is scaled first.
    tiny = v.compare("<", x, v.constant(2.0 ** (1 - k.bias)))
    scaled = v.select(tiny, v.mul(x, v.constant(2.0**k.mantissa_bits)), x)
    by = v.select(tiny, v.constant(k.mantissa_bits), v.constant(0.0))
    return _positive(v, x, _log_of(v, scaled, by))


def _positive(v: Vectors, x: Any, value: Any) -> Any:
    """The value where x is positive and finite, else the logarithm of zero, NaN and so on."""
    zero, inf = v.constant(0.0), math.inf
    beyond = v.select(v.compare("<", x, zero), v.constant(math.nan), x)
    beyond = v.select(v.compare("==", x, zero), v.constant(-inf), beyond)
    finite = v.select(v.compare("<", x, v.constant(inf)), value, beyond)
    return v.select(v.compare(">", x, zero), finite, beyond)


def _log1p_of(v: Vectors, x: Any, u: Any) -> Any:
    """The logarithm of 1 + x for finite x > -1, where u is 1 + x, rounded."""
    one = v.constant(1.0)
    small, large = v.sub(x, v.sub(u, one)), v.sub(one, v.sub(u, x))
    lost = v.select(v.compare(">", x, one), large, small)
    return _log_of(v, u, rest=v.div(lost, u))


def _log1p(v: Vectors, x: Any) -> Any:
    u = v.add(v.constant(1.0), x)
    # The zero keeps its sign.
    return v.select(v.compare("==", x, v.constant(0.0)), x, _positive(v, u, _log1p_of(v, x, u)))


def _softplus(v: Vectors, x: Any) -> Any:
    e = _exp(v, x)
    value = _log1p_of(v, e, v.add(v.constant(1.0), e))
    return v.select(v.compare(">", x, v.constant(20.0)), x, value)


def _expm1(v: Vectors, x: Any) -> Any:
    k = CONSTANTS[v.bits]
    # Below the first bound it rounds to -1.
    shifted, p = _reduced_exp(v, _clamp(v, x, -2 * k.tanh_saturation, k.exp_high))
    # 2^n may be too large for a number, and its half is not.
    scale = _power_of_two(v, v.bits_of(shifted), halved=True)
    half = v.multiply_add(scale, p, v.sub(scale, v.constant(0.5)))
    # Of so small an x it is x: the halves of the smallest numbers would lose their last bit.
    small = v.compare("<", v.call("fabs", x), v.constant(2.0 ** -(k.mantissa_bits + 2)))
    return v.select(small, x, v.add(half, half))


def _sigmoid(v: Vectors, x: Any) -> Any:
    return v.div(v.constant(1.0), _one_plus_exp_of_minus(v, x))


def _silu(v: Vectors, x: Any) -> Any:
    return v.div(x, _one_plus_exp_of_minus(v, x))


def _one_plus_exp_of_minus(v: Vectors, x: Any) -> Any:
    """1 + exp(-x)."""
    k = CONSTANTS[v.bits]
    # Below the first bound the sum rounds to 1.
    shifted, p = _reduced_exp(v, _clamp(v, v.neg(x), -2 * k.tanh_saturation, k.exp_high))
    # 2^n may be too large for a number, and its half is not.
    scale = _power_of_two(v, v.bits_of(shifted), halved=True)
    one = v.constant(1.0)
    return v.multiply_add(v.mul(scale, v.add(p, one)), v.constant(2.0), one)


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
    # If y is NaN, the comparison is false, which selects y.
    return v.select(v.compare("!=", x, x), x, v.select(v.compare(symbol, x, y), x, y))


def _at_least(v: Vectors, x: Any, low: float) -> Any:
    # If the comparison is false, x is kept, so that NaN stays NaN.
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


#: For each operation name, a function of `Vectors`, the arguments and then the constants.
_EMITTERS: Mapping[str, Callable[..., Any]] = MappingProxyType(
    {
        "add": lambda v, x, y: v.add(x, y),
        "sub": lambda v, x, y: v.sub(x, y),
        "mul": lambda v, x, y: v.mul(x, y),
        "div": lambda v, x, y: v.div(x, y),
        "neg": lambda v, x: v.neg(x),
        "exp": _exp,
        "log": _log,
        "log1p": _log1p,
        "expm1": _expm1,
        "sqrt": lambda v, x: v.call("sqrt", x),
        "tanh": _tanh,
        "sigmoid": _sigmoid,
        "relu": _relu,
        "leaky_relu": _leaky_relu,
        "softplus": _softplus,
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
        "with_slope": lambda v, value, x, slope: value,
        "tanh_backward": _tanh_backward,
        "sigmoid_backward": _sigmoid_backward,
        "relu_backward": _relu_backward,
    }
)

#: Names of the operations that `lower` supports.
OPERATIONS = frozenset(_EMITTERS) | {"constant"}

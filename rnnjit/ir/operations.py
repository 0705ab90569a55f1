"""The operations of programs: their arguments, their constants and the kind of their result.

Every operation is pointwise and computes what torch's function of the same name computes, also for
NaN, infinities and signed zeros. In particular:

* `softplus(x)` has torch's default threshold: x > 20 ? x : log1p(exp(x));
* `sign` of NaN is 0, `minimum`, `maximum`, `clamp` and `relu` of NaN are NaN;
* `clamp(x, low, high)` is min(max(x, low), high); -inf and inf mean that there is no bound;
* `detach` is the identity, and stops gradients;
* `with_slope(value, x, slope)` is value. Its gradient is passed to value, and times slope to x;
  slope gets none. `with_slope(detach(f(x)), x, g(x))` is f(x) with the gradient of a function whose
  derivative is g, such as the surrogate of a spike.

Three operations occur only in derivatives. Backends may lower them with formulas that round
differently; torch's formulas are

    tanh_backward(grad, result)    = grad * (1 - result * result)
    sigmoid_backward(grad, result) = grad * (1 - result) * result
    relu_backward(grad, result)    = result <= 0 ? 0 : grad       NaN results pass the gradient
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


class Kind(enum.Enum):
    """The kind of a value: a number of the layer's dtype, or a condition for `where`."""

    NUMBER = "number"
    CONDITION = "condition"


@dataclass(frozen=True)
class Operation:
    """The signature of an operation.

    Attributes:
        arguments: the kind of each argument.
        result: the kind of the result.
        constants: names of its constants, which are fixed in the program and follow the arguments.
    """

    arguments: tuple[Kind, ...]
    result: Kind = Kind.NUMBER
    constants: tuple[str, ...] = ()


_UNARY = Operation((Kind.NUMBER,))
_BINARY = Operation((Kind.NUMBER, Kind.NUMBER))
_COMPARISON = Operation((Kind.NUMBER, Kind.NUMBER), Kind.CONDITION)

#: Every operation by its name.
OPERATIONS: Mapping[str, Operation] = MappingProxyType(
    {
        "constant": Operation((), constants=("value",)),
        "add": _BINARY,
        "sub": _BINARY,
        "mul": _BINARY,
        "div": _BINARY,
        "neg": _UNARY,
        "exp": _UNARY,
        "log": _UNARY,
        "log1p": _UNARY,
        "expm1": _UNARY,
        "sqrt": _UNARY,
        "tanh": _UNARY,
        "sigmoid": _UNARY,
        "relu": _UNARY,
        "leaky_relu": Operation((Kind.NUMBER,), constants=("slope",)),
        "softplus": _UNARY,
        "silu": _UNARY,
        "abs": _UNARY,
        "sign": _UNARY,
        "minimum": _BINARY,
        "maximum": _BINARY,
        "clamp": Operation((Kind.NUMBER,), constants=("low", "high")),
        "lt": _COMPARISON,
        "le": _COMPARISON,
        "gt": _COMPARISON,
        "ge": _COMPARISON,
        "eq": _COMPARISON,
        "ne": _COMPARISON,
        "where": Operation((Kind.CONDITION, Kind.NUMBER, Kind.NUMBER)),
        "detach": _UNARY,
        "with_slope": Operation((Kind.NUMBER, Kind.NUMBER, Kind.NUMBER)),
        "tanh_backward": _BINARY,
        "sigmoid_backward": _BINARY,
        "relu_backward": _BINARY,
    }
)

"""The operations of a program: how many arguments of which kind each takes, and what it gives.

Every operation is pointwise and means what torch's function of that name means, NaN, infinities
and signed zeros included. In particular:

* `softplus(x)` has torch's default threshold: x > 20 ? x : log1p(exp(x));
* `sign` of NaN is 0, `minimum`, `maximum`, `clamp` and `relu` of NaN are NaN;
* `clamp(x, low, high)` is min(max(x, low), high), and -inf and inf stand for no bound;
* `detach` is the identity, and stops gradients.

Three operations occur in derivatives only. Backends lower them with the formula whose rounding
they want; torch's are

    tanh_backward(grad, result)    = grad * (1 - result * result)
    sigmoid_backward(grad, result) = grad * (1 - result) * result
    relu_backward(grad, result)    = result <= 0 ? 0 : grad       so that a NaN passes the gradient
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


class Kind(enum.Enum):
    """What a value is: a number of the layer's dtype, or a condition, which `where` takes."""

    NUMBER = "number"
    CONDITION = "condition"


@dataclass(frozen=True)
class Operation:
    """How an operation is called.

    Attributes:
        arguments: the kind of each argument.
        result: the kind of the result.
        constants: names of the constants that are fixed in the program, given after the arguments.
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
        "tanh_backward": _BINARY,
        "sigmoid_backward": _BINARY,
        "relu_backward": _BINARY,
    }
)

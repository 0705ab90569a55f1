"""Evaluates programs on float64 arrays, independently of torch, for tests."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rnnjit.ir.program import Program, evaluate

#: An array of numbers (float64) or of conditions (bool).
_Array = NDArray[Any]


def evaluate_arrays(
    program: Program, inputs: Sequence[ArrayLike]
) -> tuple[NDArray[np.float64] | None, ...]:
    """Evaluate a program on arrays that broadcast, in float64.

    Returns:
        One float64 array per output, of the broadcast shape of all inputs; None for an output that
        is None.

    Raises:
        ValueError: too few or too many inputs, or they do not broadcast.
    """
    arrays: list[_Array] = [np.asarray(each, np.float64) for each in inputs]
    with np.errstate(all="ignore"):  # infinities and NaN are values here
        outputs = evaluate(program, arrays, NUMPY_OPERATIONS, np.asarray)
    shape = np.broadcast_shapes(*(each.shape for each in arrays))
    return tuple(None if each is None else np.broadcast_to(each, shape) for each in outputs)


def _where(condition: _Array, x: ArrayLike, y: ArrayLike) -> _Array:
    return np.where(condition, x, y)


def _sign(x: _Array) -> _Array:
    return _where(np.isnan(x), 0.0, np.sign(x))


#: The function of each operation: it takes the arrays, then the constants.
NUMPY_OPERATIONS: Mapping[str, Callable[..., _Array]] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "neg": np.negative,
    "exp": np.exp,
    "log": np.log,
    "log1p": np.log1p,
    "expm1": np.expm1,
    "sqrt": np.sqrt,
    "tanh": np.tanh,
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "relu": lambda x: _where(x < 0, 0.0, x),
    "leaky_relu": lambda x, slope: _where(x > 0, x, x * slope),
    "softplus": lambda x: _where(x > 20, x, np.log1p(np.exp(x))),
    "silu": lambda x: x / (1 + np.exp(-x)),
    "abs": np.abs,
    "sign": _sign,
    "minimum": np.minimum,
    "maximum": np.maximum,
    "clamp": np.clip,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "eq": np.equal,
    "ne": np.not_equal,
    "where": _where,
    "detach": np.positive,
    "with_slope": lambda value, x, slope: np.positive(value),
    "tanh_backward": lambda grad, result: grad * (1 - result**2),
    "sigmoid_backward": lambda grad, result: grad * result * (1 - result),
    "relu_backward": lambda grad, result: _where(result <= 0, 0.0, grad),
}

"""The pointwise operators of torch, as expressions in the IR.

Where an operator has no operation of its own, the expression has its value and its gradient, at
kinks, ties and NaN, too. A rule takes the operator's arguments, with expressions for tensors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from rnnjit.cells.expressions import Expression, Pool
from rnnjit.ir import builder as ir

#: A rule, or why there is none, is found by the operator's name in `torch.ops.aten`.
Rule = Callable[..., Expression]


class CannotExpressError(Exception):
    """A rule does not take these arguments: `why`, and `remedy`."""

    def __init__(self, why: str, remedy: str) -> None:
        self.why, self.remedy = why, remedy
        super().__init__(why, remedy)


def _unary(operation: str) -> Rule:
    return lambda pool, x, **_: pool.append(operation, (pool.number(x),))


def _comparison(operation: str) -> Rule:
    return lambda pool, x, y: pool.append(operation, (pool.number(x), pool.number(y)))


def _scaled(pool: Pool, x: Any, alpha: float) -> Expression:
    return pool.number(x) if alpha == 1 else pool.append("mul", (pool.number(x), alpha))


def _add(pool: Pool, x: Any, y: Any, *, alpha: float = 1) -> Expression:
    return pool.append("add", (pool.number(x), _scaled(pool, y, alpha)))


def _sub(pool: Pool, x: Any, y: Any, *, alpha: float = 1) -> Expression:
    return pool.append("sub", (pool.number(x), _scaled(pool, y, alpha)))


def _rsub(pool: Pool, x: Any, y: Any, alpha: float = 1) -> Expression:
    return pool.append("sub", (pool.number(y), _scaled(pool, x, alpha)))


def _mul(pool: Pool, x: Any, y: Any) -> Expression:
    return pool.append("mul", (pool.number(x), pool.number(y)))


def _div(pool: Pool, x: Any, y: Any, *, rounding_mode: str | None = None) -> Expression:
    if rounding_mode is not None:
        raise CannotExpressError(
            f"rounds ({rounding_mode!r}), which no backend compiles", "Divide without rounding"
        )
    return pool.append("div", (pool.number(x), pool.number(y)))


def _pow(pool: Pool, x: Any, exponent: Any) -> Expression:
    powers = {-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0, 3.0, 4.0}
    if not isinstance(exponent, (int, float)) or exponent not in powers:
        given = exponent if isinstance(exponent, (int, float)) else "of a tensor"
        raise CannotExpressError(
            f"has the exponent {given}, and compiled cells have -2, -1, -0.5, 0, 0.5, 1 to 4",
            "Write torch.exp(exponent * torch.log(base)) if the base is positive",
        )
    value = pool.number(x)
    if exponent == 0:
        return pool.expression(1.0)
    size = abs(exponent)
    found = pool.append("sqrt", (value,)) if size == 0.5 else value
    if size >= 2:
        found = pool.append("mul", (value, value))
    if size == 4:
        found = pool.append("mul", (found, found))
    elif size == 3:
        found = pool.append("mul", (found, value))
    return pool.append("div", (1.0, found)) if exponent < 0 else found


def _addcmul(pool: Pool, x: Any, a: Any, b: Any, *, value: float = 1) -> Expression:
    return _add(pool, x, _mul(pool, _scaled(pool, a, value), b))


def _addcdiv(pool: Pool, x: Any, a: Any, b: Any, *, value: float = 1) -> Expression:
    return _add(pool, x, _div(pool, _scaled(pool, a, value), b))


def _lerp(pool: Pool, start: Any, end: Any, weight: Any) -> Expression:
    """Torch's formula, whose sides meet at weight 0.5; its gradient does not follow the formula."""
    a, b, w = pool.number(start), pool.number(end), pool.number(weight)
    low, high = a + w * (b - a), b - (b - a) * (1.0 - w)
    if isinstance(weight, (int, float)):
        return pool.expression(low if abs(weight) < 0.5 else high)
    value = ir.detach(ir.where(abs(w) < 0.5, low, high))
    for x, slope in ((a, 1.0 - w), (b, w), (w, b - a)):
        value = ir.with_slope(value, x, slope)
    return pool.expression(value)


def _where(pool: Pool, condition: Any, x: Any, y: Any) -> Expression:
    return pool.append("where", (pool.condition(condition), pool.number(x), pool.number(y)))


def _masked_fill(pool: Pool, x: Any, mask: Any, value: Any) -> Expression:
    return _where(pool, mask, value, x)


def _clamp(pool: Pool, x: Any, low: Any = None, high: Any = None) -> Expression:
    """Torch's clamp: its gradient passes to x at both bounds."""
    value = pool.number(x)
    fixed = (-math.inf if low is None else low, math.inf if high is None else high)
    if any(isinstance(each, float) and math.isnan(each) for each in fixed):
        raise CannotExpressError("has a bound that is NaN", "Give bounds that are numbers, or None")
    if all(isinstance(each, (int, float)) for each in fixed):
        return pool.append("clamp", (value,), fixed)
    lower = None if low is None else pool.number(low)
    upper = None if high is None else pool.number(high)
    return _clamp_by_tensors(pool, value, lower, upper)


def _clamp_by_tensors(
    pool: Pool, x: Expression, low: Expression | None, high: Expression | None
) -> Expression:
    """The gradient passes to x within the bounds, to one of them elsewhere, never to both."""
    if low is None and high is None:
        return x
    value: ir.Value = x
    passes: ir.Value = pool.expression(1.0)
    if low is not None:
        value, passes = ir.maximum(value, low), ir.where(x >= low, passes, 0.0)
    if high is not None:
        value, passes = ir.minimum(value, high), ir.where(x <= high, passes, 0.0)
    value = ir.with_slope(ir.detach(value), x, passes)
    if low is not None:
        below = pool.append("where", (x < low, 1.0, 0.0))
        if high is not None:
            below = pool.append("where", (low < high, below, 0.0))
        value = ir.with_slope(value, low, below)
    if high is not None:
        above = pool.append("where", (x > high, 1.0, 0.0))
        if low is not None:
            above = pool.append("where", (high < low, 1.0, above))
        value = ir.with_slope(value, high, above)
    return pool.expression(value)


def _is_nan(pool: Pool, x: Expression) -> Expression:
    return pool.append("ne", (x, x))


def _inside(v: ir.Value, low: float, high: float, x: ir.Value, y: float, z: float) -> ir.Value:
    """X where low < v < high, y below and z above. No gradient passes elsewhere, at NaN neither."""
    beyond = ir.where(v <= low, y, ir.where(v >= high, z, ir.detach(v)))
    return ir.where(v > low, ir.where(v < high, x, beyond), beyond)


def _hardtanh(pool: Pool, x: Any, low: float = -1, high: float = 1) -> Expression:
    """Torch's hardtanh: unlike clamp's, its gradient does not pass at the bounds.

    At NaN torch's gradient depends on where in memory the element is; vectors of elements have 0.
    """
    v = pool.number(x)
    return pool.expression(_inside(v, low, high, v, low, high))


def _hardsigmoid(pool: Pool, x: Any) -> Expression:
    v = pool.number(x)
    return pool.expression(_inside(v, -3.0, 3.0, v + 3.0, 0.0, 6.0) / 6.0)


def _elu(
    pool: Pool, x: Any, alpha: float = 1, scale: float = 1, input_scale: float = 1
) -> Expression:
    """The inner `where` keeps the gradient of a large x from being 0 times infinity."""
    v = pool.number(x)
    negative = _scaled(pool, ir.where(v > 0.0, 0.0, v), input_scale)
    return pool.expression(
        ir.where(v > 0.0, _scaled(pool, v, scale), _scaled(pool, ir.expm1(negative), alpha * scale))
    )


def _softplus(pool: Pool, x: Any, beta: float = 1, threshold: float = 20) -> Expression:
    v = pool.number(x)
    if beta == 1 and threshold == 20:
        return pool.append("softplus", (v,))
    large = v * beta > threshold
    return pool.expression(
        ir.where(large, v, ir.log1p(ir.exp(ir.where(large, 0.0, v * beta))) / beta)
    )


def _log_sigmoid(pool: Pool, x: Any) -> Expression:
    v = pool.number(x)
    return pool.expression(ir.minimum(v, 0.0) - ir.log1p(ir.exp(-abs(v))))


def _leaky_relu(pool: Pool, x: Any, slope: float = 0.01) -> Expression:
    return pool.append("leaky_relu", (pool.number(x),), (slope,))


def _prelu(pool: Pool, x: Any, weight: Any) -> Expression:
    v, w = pool.number(x), pool.number(weight)
    return pool.expression(ir.where(v > 0.0, v, w * ir.where(v > 0.0, 0.0, v)))


def _threshold(pool: Pool, x: Any, threshold: float, value: float) -> Expression:
    v = pool.number(x)
    return pool.expression(ir.where(v <= threshold, value, v))


def _gelu(pool: Pool, x: Any, *, approximate: str = "none") -> Expression:
    if approximate != "tanh":
        raise CannotExpressError(
            "needs erf, which compiled cells do not have", "Use approximate='tanh', or silu"
        )
    v = pool.number(x)
    inner = math.sqrt(2 / math.pi) * (v + 0.044715 * (v * v * v))
    return pool.expression(0.5 * v * (1.0 + ir.tanh(inner)))


def _mish(pool: Pool, x: Any) -> Expression:
    v = pool.number(x)
    return pool.expression(v * ir.tanh(ir.softplus(v)))


def _not(pool: Pool, x: Any) -> Expression:
    return pool.append("eq", (pool.number(pool.condition(x)), 0.0))


def _logic(combine: Callable[[Pool, Expression, Expression], Expression]) -> Rule:
    """A logical operation, by conditions as the numbers 1 and 0."""
    return lambda pool, x, y: combine(
        pool, pool.number(pool.condition(x)), pool.number(pool.condition(y))
    )


_and = _logic(lambda pool, x, y: pool.condition(pool.append("mul", (x, y))))
_or = _logic(lambda pool, x, y: pool.condition(pool.append("add", (x, y))))
_xor = _logic(lambda pool, x, y: pool.append("ne", (x, y)))


#: By the names of `torch.ops.aten`, and for overloads that differ, of the overload.
RULES: Mapping[str, Rule] = {
    **{
        name: _unary(name)
        for name in (
            *("neg", "exp", "log", "log1p", "expm1", "sqrt", "tanh", "sigmoid", "relu", "silu"),
            *("abs", "sign", "detach"),
        )
    },
    **{name: _comparison(name) for name in ("lt", "le", "gt", "ge", "eq", "ne")},
    "sgn": _unary("sign"),
    "positive": lambda pool, x: pool.number(x),
    "add": _add,
    "sub": _sub,
    "rsub": _rsub,
    "mul": _mul,
    "div": _div,
    "true_divide": _div,
    "reciprocal": lambda pool, x: pool.append("div", (1.0, pool.number(x))),
    "rsqrt": lambda pool, x: pool.append("div", (1.0, pool.append("sqrt", (pool.number(x),)))),
    "square": lambda pool, x: _pow(pool, x, 2),
    "pow": _pow,
    "addcmul": _addcmul,
    "addcdiv": _addcdiv,
    "lerp": _lerp,
    "where": _where,
    "masked_fill": _masked_fill,
    "clamp": _clamp,
    "clamp_min": lambda pool, x, low: _clamp(pool, x, low, None),
    "clamp_max": lambda pool, x, high: _clamp(pool, x, None, high),
    "minimum": lambda pool, x, y: pool.append("minimum", (pool.number(x), pool.number(y))),
    "maximum": lambda pool, x, y: pool.append("maximum", (pool.number(x), pool.number(y))),
    "hardtanh": _hardtanh,
    "relu6": lambda pool, x: _hardtanh(pool, x, 0, 6),
    "hardsigmoid": _hardsigmoid,
    "elu": _elu,
    "celu": lambda pool, x, alpha=1.0: _elu(pool, x, alpha, 1, 1 / alpha),
    "softplus": _softplus,
    "log_sigmoid_forward": _log_sigmoid,
    "leaky_relu": _leaky_relu,
    "_prelu_kernel": _prelu,
    "threshold": _threshold,
    "gelu": _gelu,
    "mish": _mish,
    "isnan": lambda pool, x: _is_nan(pool, pool.number(x)),
    "logical_not": _not,
    "bitwise_not": _not,
    "logical_and": _and,
    "bitwise_and": _and,
    "__and__": _and,
    "logical_or": _or,
    "bitwise_or": _or,
    "__or__": _or,
    "logical_xor": _xor,
    "bitwise_xor": _xor,
    "__xor__": _xor,
}

"""Elman cells that no kernel was written for: two with gradients, and one for each operation."""

from __future__ import annotations

import numpy as np

from rnnjit.ir import CellSpec, builder
from rnnjit.ir.numpy_evaluator import evaluate_arrays

#: Where operations differ in what they make of NaN, infinities, zeros and large numbers.
NUMBERS = (0.0, 1e-3, 0.3, 0.5, 1.0, 2.5, 20.5, 100.0, np.inf)
POINTS = np.array([*NUMBERS, *(-number for number in NUMBERS), np.nan])


def elman(name, function):
    """The cell h' = function(z)."""
    return CellSpec.trace(
        lambda zx, zh, h: [function(zx[0] + zh[0])] * 2, name=name, gates=["z"], states=["h"]
    )


def activation(cell, z):
    """What a cell makes of z, in float64."""
    return evaluate_arrays(cell.step.without_inputs(cell.states), [z])[0]


SIGMOID = elman("sigmoid", builder.sigmoid)
DECAY = elman("decay", lambda z: builder.exp(-0.5 - z))

_FUNCTIONS = {
    "add": lambda z: z + 0.5,
    "sub": lambda z: 0.5 - z,
    "mul": lambda z: z * -2.0,
    "div": lambda z: 1.0 / z,
    "neg": lambda z: -z,
    "exp": builder.exp,
    "log": builder.log,
    "log1p": builder.log1p,
    "expm1": builder.expm1,
    "sqrt": builder.sqrt,
    "tanh": builder.tanh,
    "sigmoid": builder.sigmoid,
    "relu": builder.relu,
    "leaky_relu": lambda z: builder.leaky_relu(z, 0.1),
    "softplus": builder.softplus,
    "silu": builder.silu,
    "abs": abs,
    "sign": builder.sign,
    "minimum": lambda z: builder.minimum(builder.minimum(z, 1.0), 0.5),
    "minimum of a constant": lambda z: builder.minimum(0.5, z),
    "maximum": lambda z: builder.maximum(builder.maximum(z, -1.0), -0.5),
    "maximum of a constant": lambda z: builder.maximum(0.5, z),
    "clamp": lambda z: builder.clamp(z, -0.5, 0.4),
    "clamp to one side": lambda z: builder.clamp(z, low=0.4),
    "clamp to bounds in the wrong order": lambda z: builder.clamp(z, 0.5, -0.4),
    "with_slope": lambda z: builder.with_slope(builder.detach(z * 2.0), z, z),
    **{
        name: lambda z, compare=compare: builder.where(compare(z, 0.5), z, -1.0)
        for name, compare in {
            "lt": lambda x, y: x < y,
            "le": lambda x, y: x <= y,
            "gt": lambda x, y: x > y,
            "ge": lambda x, y: x >= y,
            "eq": lambda x, y: x == y,
            "ne": lambda x, y: x != y,
        }.items()
    },
}
_INF, _NAN = float("inf"), float("nan")
#: By what they compute. They are detached, since a derivative may need more than the result.
SINGLE = {
    name: elman(name, lambda z, function=function: builder.detach(function(z)))
    for name, function in _FUNCTIONS.items()
}
SINGLE["constants"] = elman("constants", lambda z: builder.where(z > 0.5, _INF, _NAN))
#: All operations at once.
EVERYTHING = elman(
    "everything",
    lambda z: z + builder.detach(sum((function(z) for function in _FUNCTIONS.values()), z)),
)

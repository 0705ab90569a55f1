"""The pointwise part of a cell as CUDA C++, generated from `CellSpec.step`."""

from __future__ import annotations

import math
from functools import partial

import torch

from rnnjit.ir import OPERATIONS, CellSpec, Kind, evaluate

_RAISED = "({0} < {1} ? {1} : {0})"
#: Each operation as a C expression: `{0}`, `{1}`, ... are its arguments and then its constants, all
#: of one type, and `{f}` is the suffix of that type's functions. None uses fmin or fmax, which drop
#: NaN; comparisons choose as torch does.
_EXPRESSIONS = {
    "add": "{0} + {1}",
    "sub": "{0} - {1}",
    "mul": "{0} * {1}",
    "div": "{0} / {1}",
    "neg": "-{0}",
    "exp": "exp{f}({0})",
    "log": "log{f}({0})",
    "log1p": "log1p{f}({0})",
    "expm1": "expm1{f}({0})",
    "sqrt": "sqrt{f}({0})",
    "tanh": "tanh{f}({0})",
    "sigmoid": "1 / (1 + exp{f}(-{0}))",
    "relu": "{0} < 0 ? 0 : {0}",
    "leaky_relu": "{0} > 0 ? {0} : {0} * {1}",
    "softplus": "{0} > 20 ? {0} : log1p{f}(exp{f}({0}))",
    "silu": "{0} / (1 + exp{f}(-{0}))",
    "abs": "fabs{f}({0})",
    "sign": "({0} > 0) - ({0} < 0)",
    "minimum": "{0} < {1} || {0} != {0} ? {0} : {1}",
    "maximum": "{0} > {1} || {0} != {0} ? {0} : {1}",
    "clamp": f"{_RAISED} > {{2}} ? {{2}} : {_RAISED}",
    "lt": "{0} < {1}",
    "le": "{0} <= {1}",
    "gt": "{0} > {1}",
    "ge": "{0} >= {1}",
    "eq": "{0} == {1}",
    "ne": "{0} != {1}",
    "where": "{0} ? {1} : {2}",
    "detach": "{0}",
    "with_slope": "{0}",
    "tanh_backward": "{0} * (1 - {1} * {1})",
    "sigmoid_backward": "{0} * (1 - {1}) * {1}",
    "relu_backward": "{1} <= 0 ? 0 : {0}",
}
_SUFFIXES = {torch.float32: "f", torch.float64: ""}


def activation(cell: CellSpec, dtype: torch.dtype) -> list[str]:
    """The statements of a C function of `real z` that returns an Elman cell's new state.

    >>> from rnnjit.ir import RNN_TANH
    >>> activation(RNN_TANH, torch.float32)
    ['const real v0 = tanhf(z);', 'return v0;']
    """
    suffix = _SUFFIXES[dtype]
    lines: list[str] = []

    def call(operation: str, *arguments: str | float) -> str:
        given = [each if isinstance(each, str) else _constant(each) for each in arguments]
        kind = "bool" if OPERATIONS[operation].result is Kind.CONDITION else "real"
        result = f"v{len(lines)}"
        expression = _EXPRESSIONS[operation].format(*given, f=suffix)
        lines.append(f"const {kind} {result} = {expression};")
        return result

    calls = {name: partial(call, name) for name in _EXPRESSIONS}
    output = evaluate(cell.step.without_inputs(cell.states), ["z"], calls, _constant)[0]
    return [*lines, f"return {output};"]


def _constant(value: float) -> str:
    """A number as a C expression; repr is exact."""
    if math.isnan(value):
        return "(real)NAN"
    if math.isinf(value):
        return "(real)INFINITY" if value > 0 else "(real)-INFINITY"
    return f"(real){value!r}"

"""Errors of steps that are not compiled: the user's line, the operation, why, and what to do."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from rnnjit.errors import CellError

_RNNJIT = str(Path(__file__).parents[1]) + os.sep
_GALLERY = str(Path(__file__).parent / "gallery") + os.sep
_TORCH = str(Path(inspect.getfile(torch)).parent) + os.sep

TAKEN = "compiled cells take pointwise operations and linear maps"
OUTSIDE = "Compute it from x outside of the cell, or compile with backend='eager'"
_UNITS = f"mixes hidden units; {TAKEN}"
_READS = (
    "reads the value of a tensor, but one trace serves all values",
    "Use torch.where for a choice by value, and a Python number for a constant",
)
#: How the names begin that interactive interpreters give to what a user types.
_PROMPTS = ("<stdin", "<python-input", "<ipython-input", "<console", "<input")


def is_own(path: str) -> bool:
    """Whether a file is torch's or rnnjit's own; the gallery's cells are as a user's."""
    if path.startswith("<"):
        return not path.startswith(_PROMPTS)
    own = path.startswith(_RNNJIT) and not path.startswith(_GALLERY)
    return own or path.startswith(_TORCH)


def users_line() -> str:
    """File and line of the innermost frame that is neither torch's nor rnnjit's own."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and is_own(frame.f_code.co_filename):
        frame = frame.f_back
    if frame is None:
        return "<unknown>"
    return f"{os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno}"


def lines_of(function: Callable[..., Any]) -> str:
    """File and first line of a function."""
    code = getattr(function, "__code__", None)
    if code is None:
        return "<unknown>"
    return f"{os.path.basename(code.co_filename)}:{code.co_firstlineno}"


def operators_name(name: str) -> str:
    """What a user would call an operator of `torch.ops.aten`."""
    return _NAMES.get(name, f"torch.{name.strip('_')}")


_NAMES = {
    "_local_scalar_dense": "Tensor.item (or bool, int, float, if, while)",
    "_softmax": "torch.softmax",
    "_log_softmax": "torch.log_softmax",
    "native_layer_norm": "torch.nn.functional.layer_norm",
    "native_batch_norm": "torch.nn.functional.batch_norm",
    "_native_batch_norm_legit": "torch.nn.functional.batch_norm",
    "native_group_norm": "torch.nn.functional.group_norm",
    "gelu": "torch.nn.functional.gelu",
    "_to_copy": "Tensor.to",
}

#: Operators that mix hidden units, or rows.
MIXING = (
    *("sum", "mean", "prod", "cumsum", "cumprod", "logcumsumexp", "cummax", "cummin", "_softmax"),
    *("_log_softmax", "logsumexp", "norm", "linalg_vector_norm", "var", "std", "var_mean", "amax"),
    *("amin", "max", "min", "argmax", "argmin", "sort", "topk", "median", "native_layer_norm"),
    *("native_batch_norm", "_native_batch_norm_legit", "native_group_norm", "convolution", "all"),
    *("any", "aminmax", "kthvalue", "mode", "nansum", "std_mean", "_fft_r2c", "diff", "dot", "mv"),
    *(
        "cudnn_batch_norm",
        "_cdist_forward",
        "avg_pool2d",
        "max_pool2d_with_indices",
        "count_nonzero",
    ),
    *(
        "gather",
        "scatter",
        "index_add",
        "_weight_norm_interface",
        "tril",
        "triu",
        "_batch_norm_with_update",
    ),
)
_SHAPES = (
    *("nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "nonzero_static"),
    *("repeat_interleave", "bincount"),
)
#: Why operators on states are refused, and what to do instead.
REFUSALS: dict[str, tuple[str, str]] = {
    **dict.fromkeys(MIXING, (_UNITS, OUTSIDE)),
    **dict.fromkeys(
        _SHAPES,
        (
            "has a result whose shape depends on values, but one trace serves all values",
            "Use torch.where, which keeps the shape",
        ),
    ),
    "index": (
        "indexes a state by a tensor, whose values decide which elements are taken",
        "Use torch.where for a choice by value, and slices or chunk for gates",
    ),
    "_local_scalar_dense": _READS,
    "equal": _READS,
    "bmm": (
        "is a product that compiled cells do not take",
        "Write F.linear(state, weight) with a weight of parameters",
    ),
    "baddbmm": (
        "is a product that compiled cells do not take",
        "Write F.linear(state, weight) with a weight of parameters",
    ),
    "erf": ("is an operation that compiled cells do not have", "Use tanh in place of erf"),
}


def unknown(name: str) -> tuple[str, str]:
    """Why an operator without a rule is refused."""
    return REFUSALS.get(
        name,
        (
            f"is an operation that compiled cells do not have on a state; {TAKEN}",
            "Write it with +, -, *, /, exp, log, sqrt, tanh, sigmoid, relu, where and the like, "
            "or compile with backend='eager'",
        ),
    )


class Refuse:
    """Makes the errors of one step.

    Attributes:
        inside: whether the tracer's own code runs, and not the user's.
        step: the step, such as "LeakyRNN.forward".
        calls: the names of torch's functions that the user's code is in, outermost first.
        where: the line to name, once the step has returned; None for that of the user's frame.
    """

    def __init__(self, step: str) -> None:
        self.step = step
        self.calls: list[str] = []
        self.where: str | None = None
        self.inside = False

    def __call__(
        self, why: str, remedy: str, *, operation: str | None = None, where: str | None = None
    ) -> CellError:
        """The error of the operator that is being traced, or of another."""
        if operation is None:
            operation = self.calls[0] if self.calls else "the step"
        place = where or self.where or users_line()
        return CellError(self.step, place, operation, why, remedy)

"""The pointwise part of a cell as Python functions of numbers, which numba-cuda compiles.

    any cell     found = step(given), found = gradient(given), both arrays in registers
    Elman cells  h = activation(z), dz = gradient(grad, h), where grad is the whole gradient of h

They are generated from `CellSpec.step_saving` and `CellSpec.backward`, one assignment for each
instruction, and call the operations below as device functions; the simulator calls the same
functions in Python.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from rnnjit.ir import CellSpec, Program, evaluate


class Pointwise(NamedTuple):
    """The pointwise part of an Elman cell (`CellSpec.is_elman`), as device functions.

    Attributes:
        activation: `(z) -> h`.
        gradient: `(grad, h) -> dz`.
    """

    activation: Callable[[Any], Any]
    gradient: Callable[[Any, Any], Any]


class Steps(NamedTuple):
    """The pointwise part of any cell, as device functions of local arrays.

    Attributes:
        step: `(given, found)`: from the inputs of `CellSpec.step_saving` to its outputs.
        gradient: `(given, found)`: from the inputs of `CellSpec.backward`, in the order of
            `gradient_inputs`, to its outputs, 0 for those that are None.
    """

    step: Callable[[Any, Any], None]
    gradient: Callable[[Any, Any], None]


def steps(
    cell: CellSpec,
    real: Any,
    library: ModuleType,
    inlined: Callable[[Any], Any],
    *,
    recorded: bool = False,
) -> Steps:
    """Lower a cell; `recorded` as in `KernelKey`, other arguments as for `pointwise`."""
    operations = {name: inlined(each) for name, each in scalar_operations(real, library).items()}
    step = _of_arrays(cell.step_saving, cell.step.inputs, operations, real)
    places = gradient_inputs(cell, recorded=recorded)
    gradient = _of_arrays(cell.backward, places, operations, real)
    return Steps(inlined(step), inlined(gradient))


def gradient_inputs(cell: CellSpec, *, recorded: bool = False) -> tuple[str, ...]:
    """The inputs of `CellSpec.backward`, with the parameters last, which are no values of a row.

    If `recorded`, there is a place behind grad_out for the gradient of each state but the first,
    which the kernels add to that of the new state.
    """
    *found, grad_out = cell.backward.inputs[: -len(cell.states)]
    ends = cell.backward.inputs[-len(cell.states) :]
    parameters = [name for name in found if name in cell.parameters]
    known = [name for name in found if name not in cell.parameters]
    more = [f"recorded {name}" for name in cell.states[1:]] if recorded else []
    return (*known, grad_out, *more, *ends, *parameters)


def pointwise(
    cell: CellSpec, real: Any, library: ModuleType, inlined: Callable[[Any], Any]
) -> Pointwise:
    """Lower an Elman cell.

    Args:
        cell: what to lower.
        real: the type of all numbers; calling it converts a number.
        library: has exp, log and so on: math, or numpy where results out of range must not raise.
        inlined: makes a device function of a Python function.
    """
    operations = {name: inlined(each) for name, each in scalar_operations(real, library).items()}
    accumulator, state, minus_zero = cell.accumulators[0].name, cell.states[0], real(-0.0)
    activation = _function(cell.step, [accumulator], operations, real)
    parameters = ["out", "grad_out", f"grad_new_{state}"]
    backward = inlined(_function(cell.backward, parameters, operations, real))

    def gradient(grad: Any, h: Any) -> Any:
        # `grad` is already the sum of both gradients: x + -0.0 is x for every x.
        return backward(h, minus_zero, grad)

    return Pointwise(inlined(activation), inlined(gradient))


def _function(
    program: Program,
    parameters: Sequence[str],
    operations: Mapping[str, Callable[..., Any]],
    real: Any,
) -> Any:
    """The first output of a program as a function, which returns 0 if the output is None.

    `parameters` names the function's parameters, at least the inputs that the output depends on.
    """
    lines = [f"def function({', '.join(parameters)}):"]
    space: dict[str, Any] = {"__name__": __name__, **operations}
    output = _body(program, program.inputs, operations, real, lines, space)[0]
    lines.append(f"return {output}")
    exec("\n    ".join(lines), space)
    return space["function"]


def _of_arrays(
    program: Program, order: Sequence[str], operations: Mapping[str, Callable[..., Any]], real: Any
) -> Any:
    """A program as a function that reads its inputs, in this order, from one array and writes one.

    It reads them all, and then writes.
    """
    lines = ["def function(given, found):"]
    space: dict[str, Any] = {"__name__": __name__, **operations}
    inputs = []
    for number, name in enumerate(program.inputs):
        inputs.append(f"i{number}")
        if name in program.used:
            lines.append(f"i{number} = given[{order.index(name)}]")
    for number, output in enumerate(_body(program, inputs, operations, real, lines, space)):
        lines.append(f"found[{number}] = {output}")
    exec("\n    ".join(lines), space)
    return space["function"]


def _body(
    program: Program,
    inputs: Sequence[str],
    operations: Mapping[str, Callable[..., Any]],
    real: Any,
    lines: list[str],
    space: dict[str, Any],
) -> list[str]:
    """Append a program's assignments to `lines`, its constants to `space`; returns its outputs."""

    def constant(value: float) -> str:
        name = f"c{len(space)}"
        space[name] = real(value)
        return name

    def call(operation: str, *arguments: str | float) -> str:
        given = [each if isinstance(each, str) else constant(each) for each in arguments]
        result = f"v{len(lines)}"
        lines.append(f"{result} = {operation}({', '.join(given)})")
        return result

    calls = {name: partial(call, name) for name in operations}
    outputs = evaluate(program, inputs, calls, constant)
    return [constant(0.0) if output is None else output for output in outputs]


def scalar_operations(real: Any, library: ModuleType) -> dict[str, Callable[..., Any]]:
    """The operations of `rnnjit.ir` as functions, by name; arguments as for `pointwise`.

    None uses min or max, which drop NaN on a GPU; comparisons choose as torch does.
    """
    exp, log1p = library.exp, library.log1p
    zero, one, threshold = real(0), real(1), real(20)
    return {
        **_arithmetic(library),
        "sigmoid": lambda x: one / (one + exp(-x)),
        "silu": lambda x: x / (one + exp(-x)),
        "softplus": lambda x: x if x > threshold else log1p(exp(x)),
        "relu": lambda x: zero if x < zero else x,
        "leaky_relu": lambda x, slope: x if x > zero else x * slope,
        "sign": lambda x: one if x > zero else (-one if x < zero else zero),
        "tanh_backward": lambda grad, result: grad * (one - result * result),
        "sigmoid_backward": lambda grad, result: grad * (one - result) * result,
        "relu_backward": lambda grad, result: zero if result <= zero else grad,
    }


def _arithmetic(library: ModuleType) -> dict[str, Callable[..., Any]]:
    """The operations that need no constants."""
    exp, log, log1p, expm1 = library.exp, library.log, library.log1p, library.expm1
    sqrt, tanh = library.sqrt, library.tanh

    def clamp(x: Any, low: Any, high: Any) -> Any:
        raised = low if x < low else x
        return high if raised > high else raised

    return {
        "add": lambda x, y: x + y,
        "sub": lambda x, y: x - y,
        "mul": lambda x, y: x * y,
        "div": lambda x, y: x / y,
        "neg": lambda x: -x,
        "abs": lambda x: abs(x),
        "exp": lambda x: exp(x),
        "log": lambda x: log(x),
        "log1p": lambda x: log1p(x),
        "expm1": lambda x: expm1(x),
        "sqrt": lambda x: sqrt(x),
        "tanh": lambda x: tanh(x),
        "minimum": lambda x, y: x if x < y or x != x else y,
        "maximum": lambda x, y: x if x > y or x != x else y,
        "clamp": clamp,
        "lt": lambda x, y: x < y,
        "le": lambda x, y: x <= y,
        "gt": lambda x, y: x > y,
        "ge": lambda x, y: x >= y,
        "eq": lambda x, y: x == y,
        "ne": lambda x, y: x != y,
        "where": lambda condition, x, y: x if condition else y,
        "detach": lambda x: x,
        "with_slope": lambda value, x, slope: value,
    }


#: Names of the operations that are lowered.
OPERATIONS = frozenset({"constant", *scalar_operations(float, np)})

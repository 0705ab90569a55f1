"""Programs in torch's operations, traced for Inductor or run step by step."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rnnjit.ir import Program, evaluate
from rnnjit.ir.torch_evaluator import TORCH_OPERATIONS

#: Names of all operations that are lowered.
OPERATIONS = frozenset([*TORCH_OPERATIONS, "constant"])


#: Where |x| is smaller, exp(x) - 1 loses digits; the number of terms of its series for each dtype.
_CANCELS, _TERMS = 0.5, {torch.float64: 16}


def _expm1(x: Tensor) -> Tensor:
    """expm1(x), which Inductor computes as exp(x) - 1: near 0 its Taylor series, by Horner."""
    found = torch.zeros_like(x)
    for n in range(_TERMS.get(x.dtype, 9), 1, -1):
        found = found * x + 1 / math.factorial(n)
    near = torch.where(x == 0, x, x + x * x * found)
    return torch.where(x.abs() < _CANCELS, near, x.exp() - 1)


#: As `TORCH_OPERATIONS`, of those that Inductor compiles as exactly as torch computes them.
_COMPILED = {**TORCH_OPERATIONS, "expm1": _expm1}


def evaluate_like(like: Tensor, program: Program, inputs: Sequence[Tensor]) -> list[Tensor | None]:
    """The outputs of a program on tensors of the dtype and on the device of `like`.

    It reads no shapes, and so they may be symbolic. It is what is compiled.
    """
    return list(evaluate(program, inputs, _COMPILED, lambda value: _scalar(like, value)))


class Pointwise:
    """A program run on tensors; its first outputs are written to memory that the caller gives.

    The program is traversed once, here; each call only runs torch's operators.

    Args:
        program: what to run; of the inputs that an output needs one is as large as the output.
        like: a tensor with the dtype and device of all.
        written: how many of the outputs are written.
        absent: names of inputs that are zero; only `add` may take them.
    """

    def __init__(
        self, program: Program, like: Tensor, written: int, absent: Sequence[str] = ()
    ) -> None:
        calls, outputs = _recorded(program, like, absent)
        targets = {value: k for k, value in enumerate(outputs[:written])}
        first = len(program.inputs)
        self._calls = [
            (*call, targets.get(number) if call.function in _WRITING else None)
            for number, call in enumerate(calls, first)
        ]
        self._written, self._rest = outputs[:written], outputs[written:]

    def __call__(
        self, inputs: Sequence[Tensor | None], into: Sequence[Tensor]
    ) -> list[Tensor | None]:
        """Write the first outputs, zeros for those that the program lacks, and return the others.

        Args:
            inputs: in the program's order; anything for those that are absent or not used. One may
                be the memory of an output if only the last operation uses it.
            into: memory for the outputs that are written.
        """
        values: list[Any] = list(inputs)
        for function, arguments, constants, target in self._calls:
            given = [values[k] for k in arguments]
            if target is None:
                values.append(function(*given, *constants))
            else:
                values.append(_WRITING[function](*given, *constants, out=into[target]))
        for number, memory in zip(self._written, into, strict=True):
            if number is None:
                memory.zero_()
            elif values[number] is not memory:
                memory.copy_(values[number])
        return [None if number is None else values[number] for number in self._rest]


class _Call(NamedTuple):
    """One operation of a program.

    Attributes:
        function: torch's operator.
        arguments: numbers of values: the inputs, and then one of each call.
        constants: what follows the arguments.
    """

    function: Callable[..., Tensor]
    arguments: tuple[int, ...]
    constants: tuple[float, ...]


def _recorded(
    program: Program, like: Tensor, absent: Sequence[str]
) -> tuple[list[_Call], tuple[int | None, ...]]:
    """The calls that evaluate a program, and the numbers of the outputs; None for absent ones."""
    calls: list[_Call] = []

    def append(function: Callable[..., Tensor], *given: int | float | None) -> int:
        arguments = tuple(each for each in given if isinstance(each, int))
        constants = tuple(each for each in given if isinstance(each, float))
        calls.append(_Call(function, arguments, constants))
        return len(program.inputs) + len(calls) - 1

    def add(left: int | None, right: int | None) -> int | None:
        if left is None or right is None:
            return right if left is None else left
        return append(torch.add, left, right)

    def constant(value: float) -> int:
        scalar = _scalar(like, value)
        return append(lambda: scalar)

    table: dict[str, Callable[..., int | None]] = {
        name: partial(append, function) for name, function in TORCH_OPERATIONS.items()
    }
    inputs = [None if name in absent else k for k, name in enumerate(program.inputs)]
    return calls, evaluate(program, inputs, table | {"add": add}, constant)


def _scalar(like: Tensor, value: float) -> Tensor:
    return like.new_full((), value)


def _relu_into(x: Tensor, *, out: Tensor) -> Tensor:
    return torch.clamp_min(x, 0, out=out)


def _tanh_backward_into(grad: Tensor, result: Tensor, *, out: Tensor) -> Tensor:
    found: Tensor = torch.ops.aten.tanh_backward.grad_input(grad, result, grad_input=out)
    return found


def _sigmoid_backward_into(grad: Tensor, result: Tensor, *, out: Tensor) -> Tensor:
    found: Tensor = torch.ops.aten.sigmoid_backward.grad_input(grad, result, grad_input=out)
    return found


def _relu_backward_into(grad: Tensor, result: Tensor, *, out: Tensor) -> Tensor:
    found: Tensor = torch.ops.aten.threshold_backward.grad_input(grad, result, 0, grad_input=out)
    return found


_OUT = (
    *("add", "sub", "mul", "div", "neg", "exp", "log", "log1p", "expm1", "sqrt", "tanh"),
    *("sigmoid", "abs", "sign", "minimum", "maximum", "clamp", "where"),
)
#: The variant of an operation that writes to `out`. Results of other operations are copied.
_WRITING: dict[Callable[..., Tensor], Callable[..., Tensor]] = {
    **{TORCH_OPERATIONS[name]: TORCH_OPERATIONS[name] for name in _OUT},
    TORCH_OPERATIONS["relu"]: _relu_into,
    TORCH_OPERATIONS["tanh_backward"]: _tanh_backward_into,
    TORCH_OPERATIONS["sigmoid_backward"]: _sigmoid_backward_into,
    TORCH_OPERATIONS["relu_backward"]: _relu_backward_into,
}

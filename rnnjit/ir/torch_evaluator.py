"""Evaluates programs on tensors with torch operators, differentiable any number of times."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from rnnjit.ir.program import Program, evaluate


def evaluate_tensors(program: Program, inputs: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
    """Evaluate a program on tensors.

    Args:
        program: a program with at least one input.
        inputs: one tensor per input, all of one dtype and on one device; those that the program
            uses must broadcast.

    Returns:
        One tensor per output, of the broadcast shape of the inputs that the program uses; None for
        an output that is None. An output that is an input may share its memory.

    Raises:
        ValueError: too few or too many inputs.
    """

    def constant(value: float) -> Tensor:
        return torch.full((), value, dtype=inputs[0].dtype, device=inputs[0].device)

    outputs = evaluate(program, inputs, TORCH_OPERATIONS, constant)
    shapes = [
        each.shape
        for each, name in zip(inputs, program.inputs, strict=True)
        if name in program.used
    ]
    shapes = shapes or [each.shape for each in inputs]
    shape = shapes[0]
    if any(each != shape for each in shapes):
        shape = torch.broadcast_shapes(*shapes)  # type: ignore[no-untyped-call]
    return tuple(
        each if each is None or each.shape == shape else each.expand(shape) for each in outputs
    )


def _relu_backward(grad: Tensor, result: Tensor) -> Tensor:
    found: Tensor = torch.ops.aten.threshold_backward(grad, result, 0)
    return found


#: The function of each operation: it takes the tensors, then the constants.
TORCH_OPERATIONS: Mapping[str, Callable[..., Tensor]] = {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "div": torch.div,
    "neg": torch.neg,
    "exp": torch.exp,
    "log": torch.log,
    "log1p": torch.log1p,
    "expm1": torch.expm1,
    "sqrt": torch.sqrt,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "relu": torch.relu,
    "leaky_relu": F.leaky_relu,
    "softplus": F.softplus,
    "silu": F.silu,
    "abs": torch.abs,
    "sign": torch.sign,
    "minimum": torch.minimum,
    "maximum": torch.maximum,
    "clamp": torch.clamp,
    "lt": torch.lt,
    "le": torch.le,
    "gt": torch.gt,
    "ge": torch.ge,
    "eq": torch.eq,
    "ne": torch.ne,
    "where": torch.where,
    "detach": torch.detach,
    "tanh_backward": torch.ops.aten.tanh_backward,
    "sigmoid_backward": torch.ops.aten.sigmoid_backward,
    "relu_backward": _relu_backward,
}

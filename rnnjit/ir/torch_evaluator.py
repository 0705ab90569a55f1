"""Evaluates programs on tensors with torch operators, differentiable any number of times."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

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


class _WithSlope(torch.autograd.Function):
    """See `with_slope` of `rnnjit.ir.operations`; second gradients pass through the slope."""

    generate_vmap_rule = True

    @staticmethod
    def forward(value: Tensor, x: Tensor, slope: Tensor) -> Tensor:
        """The value; x and slope broadcast to it."""
        return value.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        """Keep the slope for the backward pass, and for forward-mode derivatives."""
        ctx.save_for_backward(inputs[2])
        ctx.save_for_forward(inputs[2])

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        """The gradients of value, x and slope."""
        (slope,) = ctx.saved_tensors
        return grads[0], grads[0] * slope, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        """The tangent of the result."""
        value, x, _ = tangents
        if x is None:
            return value
        through = x * ctx.saved_tensors[0]
        return through if value is None else value + through


def _with_slope(value: Tensor, x: Tensor, slope: Tensor) -> Tensor:
    given = torch.broadcast_tensors(value, x, slope)  # type: ignore[no-untyped-call]  # torch has no types here
    found: Tensor = _WithSlope.apply(*given)  # type: ignore[no-untyped-call]  # nor here
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
    "with_slope": _with_slope,
    "tanh_backward": torch.ops.aten.tanh_backward,
    "sigmoid_backward": torch.ops.aten.sigmoid_backward,
    "relu_backward": _relu_backward,
}

"""The autograd node of the eager-mode path: one backend's layer, forward and backward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rnnjit.backend import Backend, LayerOutput, Needs
from rnnjit.reference import layer_forward
from rnnjit.spec import LayerSpec, Rows


def run_layer(
    backend: Backend,
    layer: LayerSpec,
    rows: Rows,
    x: Tensor,
    h0: Tensor,
    weights: Sequence[Tensor],
    needs_grad: bool,
) -> tuple[Tensor, Tensor]:
    """`(y, h_n)` of one layer by `backend`, recorded for autograd where a gradient is needed."""
    if backend.differentiable or not needs_grad:
        output = backend.forward(layer, rows, x, h0, weights, needs_grad)
        return output.y, output.h_n
    return _Layer.apply(backend, layer, rows, x, h0, *weights)  # type: ignore[no-any-return]


class _Layer(torch.autograd.Function):
    """Calls the backend both ways; a backward pass that is itself recorded uses the reference."""

    @staticmethod
    def forward(
        ctx: Any,
        backend: Backend,
        layer: LayerSpec,
        rows: Rows,
        x: Tensor,
        h0: Tensor,
        *weights: Tensor,
    ) -> tuple[Tensor, Tensor]:
        output = backend.forward(layer, rows, x, h0, weights, True)
        ctx.backend, ctx.layer, ctx.rows = backend, layer, rows
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, h0, *weights)
        # Eager lets its caller overwrite y in place before the backward pass. y is therefore not
        # among the checked tensors: if its version has moved, the backward pass computes it anew.
        ctx.kept = output._replace(y=output.y.detach(), h_n=output.h_n.detach())
        ctx.version = ctx.kept.y._version
        return output.y, output.h_n

    @staticmethod
    def backward(  # type: ignore[override]  # the base class declares *args only
        ctx: Any, grad_y: Tensor | None, grad_h_n: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        unused = (None, None, None)
        if grad_y is None and grad_h_n is None:
            return (*unused, *(None for _ in ctx.needs_input_grad[3:]))
        x, h0, *weights = ctx.saved_tensors
        if torch.is_grad_enabled():
            return (*unused, *_differentiable_backward(ctx, x, h0, weights, grad_y, grad_h_n))
        kept: LayerOutput = ctx.kept
        if kept.y._version != ctx.version:
            kept = ctx.backend.forward(ctx.layer, ctx.rows, x, h0, weights, True)
        needs = Needs(ctx.needs_input_grad[3], ctx.needs_input_grad[4], ctx.needs_input_grad[5:])
        grads = ctx.backend.backward(
            ctx.layer, ctx.rows, x, h0, weights, kept, grad_y, grad_h_n, needs
        )
        return (*unused, grads.x, grads.h0, *grads.weights)


def _differentiable_backward(
    ctx: Any,
    x: Tensor,
    h0: Tensor,
    weights: Sequence[Tensor],
    grad_y: Tensor | None,
    grad_h_n: Tensor | None,
) -> list[Tensor | None]:
    """The gradients as a graph of their own, by differentiating the reference.

    The inputs are aliased first: one may depend on another (a weight computed from x, say), and
    only the direct share of each is wanted here.
    """
    inputs = [tensor.view_as(tensor) for tensor in (x, h0, *weights)]
    outputs = layer_forward(ctx.layer, ctx.rows, inputs[0], inputs[1], inputs[2:])
    wanted = [i for i, needed in enumerate(ctx.needs_input_grad[3:]) if needed]
    pairs = [
        (output, grad)
        for output, grad in zip(outputs, (grad_y, grad_h_n), strict=True)
        if grad is not None
    ]
    found = torch.autograd.grad(
        [output for output, _ in pairs],
        [inputs[i] for i in wanted],
        [grad for _, grad in pairs],
        create_graph=True,
        allow_unused=True,
    )
    grads: list[Tensor | None] = [None] * len(inputs)
    for i, grad in zip(wanted, found, strict=True):
        grads[i] = grad
    return grads

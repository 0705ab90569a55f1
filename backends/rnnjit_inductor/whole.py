"""Layers on the CPU for which nothing is compiled: torch's own operator for all steps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rnnjit import LayerGrads, LayerOutput, LayerSpec, Needs, Rows
from rnnjit.backend import States
from rnnjit.recurrence import Saved
from rnnjit.reference import BACKEND as EAGER


def whole_forward(
    layer: LayerSpec, rows: Rows, x: Tensor, hx: States, weights: Sequence[Tensor], keep: bool
) -> LayerOutput:
    """`Backend.forward`; the results are copies that share no memory.

    One tensor more is saved than `layer_forward` saves, see `was_whole`.
    """
    output = EAGER.forward(layer, rows, x, hx, weights, keep)
    y, h_n = output.y.clone(), tuple(state.clone() for state in output.h_n)
    saved = tuple(y.new_empty(0) for _ in range(1 + Saved.count(layer))) if keep else ()
    return LayerOutput(y, h_n, saved)


def was_whole(layer: LayerSpec, output: LayerOutput) -> bool:
    """Whether `whole_forward` made an output: the number of threads may have changed since."""
    return len(output.saved) > Saved.count(layer)


def whole_backward(
    layer: LayerSpec,
    rows: Rows,
    x: Tensor,
    hx: States,
    weights: Sequence[Tensor],
    grad_y: Tensor | None,
    grad_h_n: tuple[Tensor | None, ...],
    needs: Needs,
) -> LayerGrads:
    """`Backend.backward`: runs the forward pass again, recorded, and differentiates it."""
    wanted, states = (needs.x, *needs.hx, *needs.weights), len(hx)
    inputs = [
        tensor.detach().requires_grad_(need)
        for tensor, need in zip((x, *hx, *weights), wanted, strict=True)
    ]
    x, own_hx, own_weights = inputs[0], tuple(inputs[1 : 1 + states]), inputs[1 + states :]
    with torch.enable_grad():
        output = EAGER.forward(layer, rows, x, own_hx, own_weights, True)
    outputs = zip((output.y, *output.h_n), (grad_y, *grad_h_n), strict=True)
    # A state may depend on none of the inputs that need a gradient: c on W_hr, for one step.
    pairs = [(v, g) for v, g in outputs if g is not None and v.requires_grad]
    leaves = [tensor for tensor in inputs if tensor.requires_grad]
    if pairs:
        values, grads = zip(*pairs, strict=True)
        found = iter(torch.autograd.grad(values, leaves, grads, materialize_grads=True))
    else:
        found = map(torch.zeros_like, leaves)
    grad_x, *rest = [next(found) if tensor.requires_grad else None for tensor in inputs]
    return LayerGrads(grad_x, tuple(rest[:states]), tuple(rest[states:]))

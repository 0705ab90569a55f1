"""The smallest complete backend: values from the reference, gradients by differentiating it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rnnjit.backend import Backend, LayerGrads, LayerOutput, Needs
from rnnjit.reference import layer_forward
from rnnjit.spec import LayerSpec, Problem, RNNSpec, Rows


class RecomputeBackend(Backend):
    """Fills both halves of the contract, `forward` and `backward`, in plain torch.

    A starting point for a backend that has a `forward` of its own and no `backward` yet, and what
    the kit's own tests break in one place at a time. It is not installed under a name.
    """

    name = "recompute"
    priority = -3000

    def why_not(self, spec: RNNSpec, problem: Problem) -> list[str]:
        """Never declines."""
        return []

    def forward(
        self,
        layer: LayerSpec,
        rows: Rows,
        x: Tensor,
        h0: Tensor,
        weights: Sequence[Tensor],
        keep: bool,
    ) -> LayerOutput:
        """The layer by `rnnjit.reference.layer_forward`, unrecorded."""
        with torch.no_grad():
            return LayerOutput(*layer_forward(layer, rows, x, h0, weights))

    def backward(
        self,
        layer: LayerSpec,
        rows: Rows,
        x: Tensor,
        h0: Tensor,
        weights: Sequence[Tensor],
        output: LayerOutput,
        grad_y: Tensor | None,
        grad_h_n: Tensor | None,
        needs: Needs,
    ) -> LayerGrads:
        """Run the layer once more, recorded, and let autograd go back through it."""
        wanted = (needs.x, needs.h0, *needs.weights)
        inputs = [
            tensor.detach().requires_grad_(need)
            for tensor, need in zip((x, h0, *weights), wanted, strict=True)
        ]
        with torch.enable_grad():
            outputs = layer_forward(layer, rows, inputs[0], inputs[1], inputs[2:])
        pairs = [
            (value, grad)
            for value, grad in zip(outputs, (grad_y, grad_h_n), strict=True)
            if grad is not None
        ]
        leaves = [tensor for tensor in inputs if tensor.requires_grad]
        found = iter(torch.autograd.grad([v for v, _ in pairs], leaves, [g for _, g in pairs]))
        grads = [next(found) if tensor.requires_grad else None for tensor in inputs]
        return LayerGrads(grads[0], grads[1], tuple(grads[2:]))

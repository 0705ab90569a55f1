"""The smallest complete backend: values from the reference, gradients by differentiating it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rnnjit.backend import Backend, LayerGrads, LayerOutput, Needs, States
from rnnjit.reference import layer_forward
from rnnjit.spec import LayerSpec, Rows


class RecomputeBackend(Backend):
    """Fills both halves of the contract, `forward` and `backward`, in plain torch.

    A starting point for a backend that has a `forward` of its own and no `backward` yet, and what
    the kit's own tests break in one place at a time. It is not installed under a name.
    """

    name = "recompute"
    priority = -3000
    devices = None
    quantized = True

    def forward(
        self,
        layer: LayerSpec,
        rows: Rows,
        x: Tensor,
        hx: States,
        weights: Sequence[Tensor],
        keep: bool,
    ) -> LayerOutput:
        """The layer by `rnnjit.reference.layer_forward`, unrecorded."""
        with torch.no_grad():
            return LayerOutput(*layer_forward(layer, rows, x, hx, weights))

    def backward(
        self,
        layer: LayerSpec,
        rows: Rows,
        x: Tensor,
        hx: States,
        weights: Sequence[Tensor],
        output: LayerOutput,
        grad_y: Tensor | None,
        grad_h_n: tuple[Tensor | None, ...],
        needs: Needs,
    ) -> LayerGrads:
        """Run the layer once more, recorded, and let autograd go back through it."""
        wanted = (needs.x, *needs.hx, *needs.weights)
        x, *rest = (
            tensor.detach().requires_grad_(need)
            for tensor, need in zip((x, *hx, *weights), wanted, strict=True)
        )
        states = len(hx)
        with torch.enable_grad():
            y, h_n = layer_forward(layer, rows, x, tuple(rest[:states]), rest[states:])
        pairs = [
            (value, grad)
            for value, grad in zip((y, *h_n), (grad_y, *grad_h_n), strict=True)
            if grad is not None
        ]
        leaves = [tensor for tensor in (x, *rest) if tensor.requires_grad]
        found = iter(
            torch.autograd.grad(
                [value for value, _ in pairs],
                leaves,
                [grad for _, grad in pairs],
                materialize_grads=True,  # of what the outputs do not depend on, zeros
            )
        )
        grad_x, *grads = (next(found) if need else None for need in wanted)
        return LayerGrads(grad_x, tuple(grads[:states]), tuple(grads[states:]))

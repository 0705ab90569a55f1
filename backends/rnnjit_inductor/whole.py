"""Layers of which nothing is compiled, dense and on the CPU: torch's own operator for all steps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rnnjit import LayerGrads, LayerOutput, LayerSpec, Needs, RNNSpec, Rows
from rnnjit.backend import Shortcut


def whole_stack(spec: RNNSpec, rows: Rows, y_shape: tuple[int, int, int]) -> Shortcut:
    """`Backend.shortcut`: all layers at once, recorded by autograd where it is on."""
    T, B, _, _ = rows
    layers, bias, bidirectional = spec.num_layers, spec.bias, spec.bidirectional
    operator = torch.rnn_tanh if spec.nonlinearity == "tanh" else torch.rnn_relu
    inputs, outputs = (T, B, spec.input_size), (T, B, y_shape[2])

    def run(x: Tensor, h0: Tensor, weights: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        # A view would be recorded, which eager has no need of.
        steps = x if x.shape == inputs else x.view(inputs)
        y, h_n = operator(steps, h0, weights, bias, layers, 0.0, False, bidirectional, False)
        return (y if outputs == y_shape else y.view(y_shape)), h_n

    return run


def whole_forward(
    layer: LayerSpec, rows: Rows, x: Tensor, h0: Tensor, weights: Sequence[Tensor]
) -> LayerOutput:
    """`Backend.forward`, in memory of its own."""
    y, h_n = _whole(layer, rows, x, h0, weights)
    return LayerOutput(y.flatten(0, 1).clone(), h_n.clone())


def whole_backward(
    layer: LayerSpec,
    rows: Rows,
    x: Tensor,
    h0: Tensor,
    weights: Sequence[Tensor],
    grad_y: Tensor | None,
    grad_h_n: Tensor | None,
    needs: Needs,
) -> LayerGrads:
    """`Backend.backward`: the forward pass anew, recorded, and autograd back through it."""
    wanted = (needs.x, needs.h0, *needs.weights)
    inputs = [
        tensor.detach().requires_grad_(need)
        for tensor, need in zip((x, h0, *weights), wanted, strict=True)
    ]
    with torch.enable_grad():
        y, h_n = _whole(layer, rows, inputs[0], inputs[1], inputs[2:])
        outputs = ((y.flatten(0, 1), grad_y), (h_n, grad_h_n))
    values, grads = zip(*((v, g) for v, g in outputs if g is not None), strict=True)
    leaves = [tensor for tensor in inputs if tensor.requires_grad]
    found = iter(torch.autograd.grad(values, leaves, grads))
    grad_x, grad_h0, *rest = [next(found) if tensor.requires_grad else None for tensor in inputs]
    return LayerGrads(grad_x, grad_h0, tuple(rest))


def _whole(
    layer: LayerSpec, rows: Rows, x: Tensor, h0: Tensor, weights: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    directions, I = layer.num_directions, layer.input_size
    spec = RNNSpec(I, layer.hidden_size, 1, layer.cell, layer.bias, bidirectional=directions == 2)
    shape = (rows.T, rows.B, directions * layer.hidden_size)
    return whole_stack(spec, rows, shape)(x, h0, tuple(weights))

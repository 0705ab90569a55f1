"""Layers upon layers: what nn.RNN does around its layers, whichever backend computes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor

from rnnjit.autograd import run_layer
from rnnjit.backend import Backend
from rnnjit.profiling import layer_range, profiling
from rnnjit.spec import LayerSpec, RNNSpec, Rows

LayerRun = Callable[
    [Backend, LayerSpec, Rows, Tensor, Tensor, Sequence[Tensor], bool, bool], tuple[Tensor, Tensor]
]


def run_stack(
    backend: Backend,
    spec: RNNSpec,
    rows: Rows,
    x: Tensor,
    h0: Tensor,
    weights: Sequence[Tensor],
    training: bool,
    needs_grad: bool,
    run: LayerRun = run_layer,
) -> tuple[Tensor, Tensor]:
    """Run every layer on the rows that the one below gave, with dropout between them.

    Dropout draws from torch's generator in the shape and order in which eager does, so that one
    seed gives both the same masks.

    Args:
        backend: computes each layer.
        spec: of the stack.
        rows: how the rows of `x` are laid over time.
        x: `[N, I]`, or `[T, B, I]` of a dense batch.
        h0: `[L*D, B, H]`.
        weights: of all layers, in nn.RNN's flat order.
        training: whether dropout is on.
        needs_grad: whether a backward pass may follow.
        run: runs a layer, as `run_layer` does.

    Returns:
        y `[N, D*H]` or `[T, B, D*H]` of the last layer and h_n `[L*D, B, H]` of all layers.
    """
    profiled = profiling()
    if spec.num_layers == 1 and not profiled:
        layer = spec.layers[0]
        return run(backend, layer, rows, x, h0.contiguous(), weights, needs_grad, True)
    directions = spec.num_directions
    states = []
    start = 0
    for index, layer in enumerate(spec.layers):
        stop = start + directions * layer.weights_per_direction
        h0_layer = h0.narrow(0, index * directions, directions).contiguous()
        last = index == spec.num_layers - 1
        own = weights[start:stop]
        with layer_range(backend, index) if profiled else nullcontext():
            x, h_n = run(backend, layer, rows, x, h0_layer, own, needs_grad, last)
        states.append(h_n)
        start = stop
        if spec.dropout and training and not last:
            x = torch.dropout(x, spec.dropout, training)
    return x, torch.cat(states)

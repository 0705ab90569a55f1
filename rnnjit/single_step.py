"""One step of a layer by the operators of torch's Cells.

Torch's operators for whole layers take a step apart and put it together again. That of the LSTM
also gives a step of float32 on the CPU to oneDNN, which lays out the weights anew at each call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from rnnjit.backend import Shortcut, States
from rnnjit.ir import GRU, LSTM, RNN_RELU, RNN_TANH, CellSpec
from rnnjit.spec import LayerSpec, RNNSpec

#: Called `(x, state or states, w_ih, w_hh, b_ih, b_hh)`.
_OPERATORS: dict[CellSpec, Callable[..., Any]] = {
    RNN_TANH: torch.rnn_tanh_cell,
    RNN_RELU: torch.rnn_relu_cell,
    LSTM: torch.lstm_cell,
    GRU: torch.gru_cell,
}

#: Cells whose dense layers torch gives to one primitive of oneDNN on the CPU, for all steps, if
#: they are not projected. Torch runs the others step by step.
_PRIMITIVES = {LSTM}


def has_step(spec: LayerSpec | RNNSpec) -> bool:
    """Whether torch has an operator for a step of such layers."""
    return spec.cell in _OPERATORS and not (spec.proj_size or spec.quantized)


def has_primitive(spec: LayerSpec | RNNSpec, dtype: torch.dtype) -> bool:
    """Whether oneDNN computes dense layers like this on the CPU, in both passes."""
    known = spec.cell in _PRIMITIVES and not (spec.proj_size or spec.quantized)
    if not known or dtype is not torch.float32:
        return False
    return bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]  # torch has no types here


def layer_step(
    layer: LayerSpec, x: Tensor, hx: States, weights: Sequence[Tensor]
) -> tuple[Tensor, States]:
    """Compute one step of a layer that `has_step`; autograd may record it.

    Args:
        layer: the configuration of the layer.
        x: `[B, I]`.
        hx: each state `[D, B, H]`.
        weights: the weights of the layer, in nn.RNN's flat order.

    Returns:
        y `[B, D*H]`, and the new states, each `[D, B, H]`; none shares memory with another.
    """
    operator, count, found = _OPERATORS[layer.cell], layer.weights_per_direction, []
    for d in range(layer.num_directions):
        own = weights[d * count : (d + 1) * count]
        states = [state[d] for state in hx]
        after = operator(x, states if len(states) > 1 else states[0], *own)
        found.append(after if len(states) > 1 else (after,))
    # Copies: autograd has saved what the operators returned, which callers may overwrite.
    y = torch.cat([states[0] for states in found], 1)
    return y, tuple(map(torch.stack, zip(*found, strict=True)))


def stack_step(spec: RNNSpec) -> Shortcut:
    """`Backend.shortcut` of a stack that `has_step`, for calls of one step."""
    layers, D = spec.layers, spec.num_directions
    count = D * layers[0].weights_per_direction
    time = 1 if spec.batch_first else 0

    def run(x: Tensor, hx: States, weights: tuple[Tensor, ...]) -> tuple[Tensor, States]:
        y, ends = x.squeeze(time), []
        for i, layer in enumerate(layers):
            own = weights[i * count : (i + 1) * count]
            states = tuple([state[i * D : (i + 1) * D] for state in hx])
            y, after = layer_step(layer, y, states, own)
            ends.append(after)
        # In place, so that y is no view, which `detach_` refuses.
        h_n = ends[0] if len(ends) == 1 else tuple(map(torch.cat, zip(*ends, strict=True)))
        return y.unsqueeze_(time), h_n

    return run


def cell_step(spec: RNNSpec) -> Shortcut:
    """`Backend.cell_shortcut` of a layer that `has_step`; y is the first of the new states."""
    operator, several = _OPERATORS[spec.cell], len(spec.cell.states) > 1

    def run(x: Tensor, hx: States, weights: tuple[Tensor, ...]) -> tuple[Tensor, States]:
        if several:
            states = operator(x, hx, *weights)
            return states[0], states
        state = operator(x, hx[0], *weights)
        return state, (state,)

    return run

"""The front-end: from a live nn.RNN to its `RNNSpec` and the weights it has at this moment."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from rnnjit.spec import RNNSpec

_NONLINEARITY = {"RNN_TANH": "tanh", "RNN_RELU": "relu"}


def capture(module: nn.RNNBase) -> RNNSpec:
    """The configuration of an nn.RNN (or of its compiled form) as it is now.

    Read anew at every call, since `module.dropout = 0` and the like are common; equal
    configurations share one object.

    Raises:
        TypeError: the module is an LSTM, a GRU or another RNNBase.
    """
    d = module.__dict__
    try:
        return _spec(
            d["input_size"],
            d["hidden_size"],
            d["num_layers"],
            _NONLINEARITY[d["mode"]],
            d["bias"],
            d["batch_first"],
            d["dropout"],
            d["bidirectional"],
        )
    except KeyError as missing:
        raise TypeError(
            f"module must be a torch.nn.RNN, got {type(module).__name__} (no {missing})"
        ) from None


@lru_cache(maxsize=1024)
def _spec(*fields: Any) -> RNNSpec:
    return RNNSpec(*fields)


@lru_cache(maxsize=1024)
def weight_shapes(spec: RNNSpec) -> tuple[torch.Size, ...]:
    """The shape of every weight, in nn.RNN's flat order: per layer, per direction."""
    shapes: list[torch.Size] = []
    for layer in spec.layers:
        hidden = layer.hidden_size
        direction = [(hidden, layer.input_size), (hidden, hidden), (hidden,), (hidden,)]
        direction = direction[: layer.weights_per_direction]
        shapes += [torch.Size(shape) for shape in direction] * layer.num_directions
    return tuple(shapes)


def weights_of(module: nn.RNNBase) -> tuple[Tensor, ...]:
    """The weights of this moment, in nn.RNN's flat order.

    Looked up at every call: they may have been replaced by assignment, `functional_call`, a
    parametrization or pruning, none of which leaves a trace that could be cached on.
    """
    parameters: dict[str, Any] = module._parameters
    try:
        return tuple([parameters[name] for name in module._flat_weights_names])
    except KeyError:
        return tuple([getattr(module, name) for name in module._flat_weights_names])

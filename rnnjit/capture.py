"""The front-end: from a live nn.RNN to its `RNNSpec` and the weights it has at this moment."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from rnnjit.spec import RNNSpec

NONLINEARITY = {"RNN_TANH": "tanh", "RNN_RELU": "relu"}
_SPECS_KEPT = 1024
_SPECS: dict[tuple[Any, ...], RNNSpec] = {}


def capture(module: nn.RNNBase) -> RNNSpec:
    """The configuration of an nn.RNN (or of its compiled form) as it is now.

    Read anew at every call, since `module.dropout = 0` and the like are common; equal
    configurations share one object.

    Raises:
        TypeError: the module is an LSTM, a GRU or another RNNBase.
    """
    d = module.__dict__
    try:
        fields = (
            d["input_size"],
            d["hidden_size"],
            d["num_layers"],
            NONLINEARITY[d["mode"]],
            d["bias"],
            d["batch_first"],
            d["dropout"],
            d["bidirectional"],
        )
    except KeyError as missing:
        raise TypeError(
            f"module must be a torch.nn.RNN, got {type(module).__name__} (no {missing})"
        ) from None
    spec = _SPECS.get(fields)
    if spec is None:
        if len(_SPECS) >= _SPECS_KEPT:
            _SPECS.clear()
        spec = _SPECS[fields] = RNNSpec(*fields)
    return spec


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

"""The front-end: from a live nn.RNN to its `RNNSpec` and the weights it has at this moment."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from torch import Tensor, nn

from rnnjit.spec import RNNSpec

NONLINEARITY = {"RNN_TANH": "tanh", "RNN_RELU": "relu"}
_SPECS_KEPT = 1024
_SPECS: dict[tuple[Any, ...], RNNSpec] = {}


def capture(module: nn.Module) -> RNNSpec:
    """The configuration of an nn.RNN or nn.RNNCell (or of its compiled form) as it is now.

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
        if isinstance(module, nn.RNNCellBase) and "nonlinearity" in d:
            return _cell_spec(d["input_size"], d["hidden_size"], d["nonlinearity"], d["bias"])
        raise TypeError(
            f"module must be a torch.nn.RNN, got {type(module).__name__} (no {missing})"
        ) from None
    spec = _SPECS.get(fields)
    if spec is None:
        if len(_SPECS) >= _SPECS_KEPT:
            _SPECS.clear()
        spec = _SPECS[fields] = RNNSpec(*fields)
    return spec


@lru_cache(maxsize=_SPECS_KEPT)
def _cell_spec(input_size: int, hidden_size: int, nonlinearity: str, bias: bool) -> RNNSpec:
    """An nn.RNNCell as one step of a layer."""
    if nonlinearity not in NONLINEARITY.values():
        raise RuntimeError(f"nonlinearity must be 'tanh' or 'relu', got {nonlinearity!r}")
    return RNNSpec(input_size, hidden_size, 1, nonlinearity, bias)


def weights_of(module: nn.Module) -> tuple[Tensor, ...]:
    """The weights of this moment, in nn.RNN's flat order.

    Looked up at every call: they may have been replaced by assignment, `functional_call`, a
    parametrization or pruning, none of which leaves a trace that could be cached on.
    """
    parameters: dict[str, Any] = module._parameters
    names = weight_names(module)
    try:
        return tuple([parameters[name] for name in names])
    except KeyError:
        return tuple([getattr(module, name) for name in names])


def weight_names(module: Any) -> list[str]:
    """Of the weights, in nn.RNN's flat order."""
    if isinstance(module, nn.RNNCellBase):
        kinds = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        return list(kinds if module.bias else kinds[:2])
    names: list[str] = module._flat_weights_names
    return names

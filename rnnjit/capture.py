"""The front-end: from a live nn.RNN to its `RNNSpec` and the weights it has at this moment."""

from __future__ import annotations

from operator import index
from typing import Any

from torch import Tensor, nn

from rnnjit.spec import RNNSpec

NONLINEARITY = {"RNN_TANH": "tanh", "RNN_RELU": "relu"}
#: The types of a configuration that torch takes as it is: `dropout` may be an int.
_USUAL = frozenset({(int, int, int, str, bool, bool, kind, bool) for kind in (float, int)})
_SPECS_KEPT = 1024
_SPECS: dict[tuple[Any, ...], RNNSpec] = {}


def capture(module: nn.Module) -> RNNSpec:
    """The configuration of an nn.RNN or nn.RNNCell (or of its compiled form) as it is now.

    Read anew at every call, since `module.dropout = 0` and the like are common; equal
    configurations share one object.

    Raises:
        AttributeError: an attribute of an nn.RNN or nn.RNNCell was deleted.
        AssertionError: `mode` of an nn.RNN is none of its two.
        TypeError: the module is an LSTM, a GRU or none of these, or torch takes no such attribute.
        RuntimeError: `input_size` is no whole number, or `nonlinearity` of a cell is unknown.
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
        usual = tuple(map(type, fields)) in _USUAL and type(d["training"]) is bool
    except (KeyError, TypeError):
        usual = False
    return _shared(fields) if usual else _capture_slowly(module)


def _capture_slowly(module: Any) -> RNNSpec:
    """`capture` of a cell, and of a module whose attributes have to be looked at one by one."""
    kind = type(module).__name__
    if isinstance(module, (nn.LSTM, nn.GRU, nn.LSTMCell, nn.GRUCell)):
        raise TypeError(f"module must be a torch.nn.RNN, got {kind}")
    if isinstance(module, nn.RNNCellBase):
        return _capture_cell(module)
    if not isinstance(module, nn.RNNBase):
        raise TypeError(f"module must be a torch.nn.RNN, got {kind}")
    mode, dropout, batch_first = module.mode, module.dropout, module.batch_first
    if not isinstance(mode, str) or mode not in NONLINEARITY:
        raise AssertionError(f"mode must be one of {', '.join(NONLINEARITY)}, got {mode!r}")
    if isinstance(module.num_layers, bool):
        raise TypeError(f"num_layers must be an int, got {module.num_layers}")
    for name in ("bias", "bidirectional", "training"):
        if type(getattr(module, name)) is not bool:
            raise TypeError(f"{name} must be a bool, got {getattr(module, name)!r}")
    if not hasattr(dropout, "__float__"):
        raise TypeError(f"dropout must be a number, got {dropout!r}")
    return _shared(
        (
            _input_size(module.input_size),
            _size("hidden_size", module.hidden_size),
            _size("num_layers", module.num_layers),
            NONLINEARITY[mode],
            module.bias,
            # `prepare` refuses the text, and only for dense input: for packed eager takes anything.
            batch_first if type(batch_first) is bool else repr(batch_first),
            float(dropout),
            module.bidirectional,
        )
    )


def _capture_cell(cell: Any) -> RNNSpec:
    """An nn.RNNCell as one step of a layer."""
    nonlinearity = cell.nonlinearity
    if not isinstance(nonlinearity, str) or nonlinearity not in NONLINEARITY.values():
        raise RuntimeError(f"nonlinearity must be 'tanh' or 'relu', got {nonlinearity!r}")
    input_size, hidden_size = _input_size(cell.input_size), _size("hidden_size", cell.hidden_size)
    return _shared((input_size, hidden_size, 1, nonlinearity, bool(cell.bias), False, 0.0, False))


def _shared(fields: tuple[Any, ...]) -> RNNSpec:
    """The one object for these fields of an `RNNSpec`."""
    spec = _SPECS.get(fields)
    if spec is None:
        if len(_SPECS) >= _SPECS_KEPT:
            _SPECS.clear()
        spec = _SPECS.setdefault(fields, RNNSpec(*fields))
    return spec


def _size(name: str, value: Any) -> int:
    try:
        return index(value)
    except TypeError:
        raise TypeError(f"{name} must be an int, got {value!r}") from None


def _input_size(value: Any) -> int:
    """Eager compares it with the input's features and needs no type of it."""
    try:
        size = index(value.__int__())
    except (AttributeError, TypeError, ValueError):
        size = None
    if size is None or size != value:
        raise RuntimeError(f"input_size must be a whole number, got {value!r}")
    return size


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

"""Reads the `RNNSpec` and the current weights of a torch module."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from operator import index
from typing import Any

import torch
from torch import Tensor, nn

from rnnjit.ir import GRU, LSTM, RNN_RELU, RNN_TANH, CellSpec
from rnnjit.runtime.torch_private import flat_weight_names, parameters_of, tensors_of
from rnnjit.spec import RNNSpec

#: The cell of an nn.RNN, by its `mode`.
_CELL_OF_MODE = {"RNN_TANH": RNN_TANH, "RNN_RELU": RNN_RELU}
#: The cell of an nn.RNNCell, by its `nonlinearity`.
CELL_OF_NONLINEARITY = {"tanh": RNN_TANH, "relu": RNN_RELU}
#: The cells of torch's other classes, which ignore both.
CELL_OF_CLASS: dict[type[nn.Module], CellSpec] = {
    nn.LSTM: LSTM,
    nn.GRU: GRU,
    nn.LSTMCell: LSTM,
    nn.GRUCell: GRU,
}
_TORCH_LAYERS: dict[CellSpec, Callable[..., nn.RNNBase]] = {
    RNN_TANH: partial(nn.RNN, nonlinearity="tanh"),
    RNN_RELU: partial(nn.RNN, nonlinearity="relu"),
    LSTM: nn.LSTM,
    GRU: nn.GRU,
}
#: The field types of a configuration that needs no conversion: `dropout` may be an int.
_USUAL = frozenset(
    {(int, int, int, CellSpec, bool, bool, kind, bool, int) for kind in (float, int)}
)
_SPECS_KEPT = 1024
_SPECS: dict[tuple[Any, ...], RNNSpec] = {}


def capture(module: nn.Module) -> RNNSpec:
    """Read the current configuration of a recurrent layer or cell of torch, compiled or not.

    A cell is one step of a layer. Every call reads it again, since assignments such as
    `module.dropout = 0` are common. Equal configurations share one object.

    Raises:
        AttributeError: an attribute of the module was deleted.
        AssertionError: nn.RNN does not know the `mode`.
        TypeError: the module is none of these, or an attribute has a type that torch does not take.
        RuntimeError: `input_size` is not a whole number, or a cell's `nonlinearity` is unknown.
    """
    d = module.__dict__
    try:
        fields = (
            d["input_size"],
            d["hidden_size"],
            d["num_layers"],
            cell_of(module),
            d["bias"],
            d["batch_first"],
            d["dropout"],
            d["bidirectional"],
            d["proj_size"],
        )
        usual = tuple(map(type, fields)) in _USUAL and type(d["training"]) is bool
    except (KeyError, TypeError):
        usual = False
    return _shared((*fields, is_quantized(module))) if usual else _capture_slowly(module)


def is_quantized(module: nn.Module) -> bool:
    """Whether the matrices of a compiled module are int8, see `rnnjit.quantize`."""
    return "_quantized" in module.__dict__


def cell_of(module: Any) -> CellSpec:
    """The cell of one of torch's recurrent layers or cells, compiled or not.

    Raises:
        AttributeError: `mode` or `nonlinearity` was deleted.
        AssertionError: nn.RNN does not know the `mode`.
        RuntimeError: nn.RNNCell does not know the `nonlinearity`.
    """
    cls = type(module)
    torch_class = getattr(cls, "_torch_class", cls)
    for known, cell in CELL_OF_CLASS.items():
        if issubclass(torch_class, known):
            return cell
    if issubclass(torch_class, nn.RNNCellBase):
        nonlinearity = module.nonlinearity
        if not isinstance(nonlinearity, str) or nonlinearity not in CELL_OF_NONLINEARITY:
            raise RuntimeError(f"nonlinearity must be 'tanh' or 'relu', got {nonlinearity!r}")
        return CELL_OF_NONLINEARITY[nonlinearity]
    mode = module.mode
    if not isinstance(mode, str) or mode not in _CELL_OF_MODE:
        raise AssertionError(f"mode must be one of {', '.join(_CELL_OF_MODE)}, got {mode!r}")
    return _CELL_OF_MODE[mode]


def _capture_slowly(module: Any) -> RNNSpec:
    """`capture` for a cell, and for a module whose attributes need individual checks."""
    kind = type(module).__name__
    if isinstance(module, nn.RNNCellBase):
        return _capture_cell(module)
    if not isinstance(module, nn.RNNBase):
        raise TypeError(f"module must be a recurrent layer or cell of torch.nn, got {kind}")
    cell, dropout = cell_of(module), module.dropout
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
            as_size("hidden_size", module.hidden_size),
            as_size("num_layers", module.num_layers),
            cell,
            module.bias,
            _batch_first(module),
            float(dropout),
            module.bidirectional,
            as_size("proj_size", module.proj_size),
            is_quantized(module),
        )
    )


def _batch_first(module: Any) -> bool | str | None:
    """`batch_first`, or what `prepare` rejects for dense input: packed input does without it."""
    try:
        value = module.batch_first
    except AttributeError:
        return None
    return value if type(value) is bool else repr(value)


def _capture_cell(module: Any) -> RNNSpec:
    """A cell of torch as one step of a layer; it takes its sizes from the weights."""
    cell, weight = cell_of(module), module.weight_ih
    if isinstance(weight, Tensor) and not weight.is_nested and weight.dim() == 2:
        rows, input_size = weight.shape
        hidden_size = rows // len(cell.gates)
    else:
        hidden_size = as_size("hidden_size", module.hidden_size)
        input_size = _input_size(module.input_size)
    bias = _has_biases(module)
    quantized = is_quantized(module)
    return _shared((input_size, hidden_size, 1, cell, bias, False, 0.0, False, 0, quantized))


def _has_biases(cell: Any) -> bool:
    return cell.bias_ih is not None or cell.bias_hh is not None


def _shared(fields: tuple[Any, ...]) -> RNNSpec:
    """The cached `RNNSpec` with these fields."""
    spec = _SPECS.get(fields)
    if spec is None:
        if len(_SPECS) >= _SPECS_KEPT:
            _SPECS.clear()
        spec = _SPECS.setdefault(fields, RNNSpec(*fields))
    return spec


def as_size(name: str, value: Any) -> int:
    """A size as an int.

    Raises:
        TypeError: it is none.
    """
    try:
        return index(value)
    except TypeError:
        raise TypeError(f"{name} must be an int, got {value!r}") from None


def _input_size(value: Any) -> int:
    """`input_size` as an int; eager takes any type whose value equals the input's features."""
    try:
        size = index(value.__int__())
    except (AttributeError, TypeError, ValueError):
        size = None
    if size is None or size != value:
        raise RuntimeError(f"input_size must be a whole number, got {value!r}")
    return size


def torch_module(spec: RNNSpec, dtype: torch.dtype) -> nn.RNNBase:
    """Construct a torch module with this configuration and new weights, on the CPU.

    Raises:
        ValueError: torch has no layer for the cell.
    """
    make = _TORCH_LAYERS.get(spec.cell)
    if make is None:
        raise ValueError(f"torch has no layer of cell {spec.cell.name!r}")
    module = make(
        spec.input_size,
        spec.hidden_size,
        num_layers=spec.num_layers,
        bias=spec.bias,
        batch_first=spec.batch_first,
        bidirectional=spec.bidirectional,
        dtype=dtype,
        device="cpu",
        **({"proj_size": spec.proj_size} if spec.proj_size else {}),
    )
    module.dropout = spec.dropout  # torch warns if it constructs one layer with dropout
    return module


def weights_of(module: nn.Module) -> tuple[Tensor, ...]:
    """The current weights, in nn.RNN's flat order.

    Every call looks them up: assignment, `functional_call`, parametrizations and pruning replace
    weights without a change that a cache could detect.
    """
    parameters = tensors_of(module) if is_quantized(module) else parameters_of(module)
    names = weight_names(module)
    try:
        return tuple([parameters[name] for name in names])
    except KeyError:
        return tuple([getattr(module, name) for name in names])


def quantized_names(names: Sequence[str]) -> list[str]:
    """The names of a direction's weights in a quantized module, from those in a float one."""
    matrices = [name for name in names if is_matrix(name)]
    kinds = ("scale", "sum")
    return [*names, *[f"{name}_{kind}" for kind in kinds for name in matrices]]


def is_matrix(name: str) -> bool:
    """Whether a weight of a torch module with this name is a matrix."""
    return name.startswith("weight_")


def weight_names(module: Any) -> list[str]:
    """The names of the weights, in nn.RNN's flat order."""
    # By the class itself, which is faster: a compiled module computes its `__class__`.
    if issubclass(type(module), nn.RNNCellBase):
        kinds = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        own = list(kinds if _has_biases(module) else kinds[:2])
        return quantized_names(own) if is_quantized(module) else own
    names = flat_weight_names(module)
    if names is not None:
        return names
    parts = ["weight_ih", "weight_hh", *(["bias_ih", "bias_hh"] if module.bias else [])]
    parts += ["weight_hr"] if module.proj_size else []
    return [
        f"{kind}_l{index}{suffix}"
        for index in range(module.num_layers)
        for suffix in ("", "_reverse")[: 2 if module.bidirectional else 1]
        for kind in parts
    ]

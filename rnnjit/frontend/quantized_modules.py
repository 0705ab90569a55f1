"""Compiled modules whose matrices are int8, and torch's own such modules."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rnnjit.frontend.capture import (
    CELL_OF_CLASS,
    CELL_OF_NONLINEARITY,
    capture,
    is_matrix,
    quantized_names,
    weight_names,
)
from rnnjit.frontend.compiled_base import CompiledBase
from rnnjit.ir import CellSpec
from rnnjit.quantization import QuantizedMatrix, of_values
from rnnjit.runtime.torch_private import parameters_of, set_flat_weight_names

#: Torch's dynamically quantized classes, by the name of the class that each was made from.
_DYNAMIC = "torch.ao.nn.quantized.dynamic.modules.rnn"
_FLOAT: dict[str, type[nn.Module]] = {
    cls.__name__: cls for cls in (nn.LSTM, nn.GRU, nn.LSTMCell, nn.GRUCell, nn.RNNCell)
}


def become_quantized(module: CompiledBase, matrices: Sequence[QuantizedMatrix]) -> None:
    """Give a compiled layer or cell of torch int8 matrices in the place of its own.

    Args:
        module: the module.
        matrices: in the order of its weights.
    """
    spec, names = capture(module), weight_names(module)
    own, count = parameters_of(module), len(names) // (spec.num_layers * spec.num_directions)
    vars(module)["_quantized"] = True
    places = [name for name in names if is_matrix(name)]
    for name, matrix in zip(places, matrices, strict=True):
        own.pop(name, None)
        module.register_buffer(name, matrix.values)
        module.register_buffer(f"{name}_scale", matrix.scale)
        module.register_buffer(f"{name}_sum", matrix.sums)
    for bias in own.values():
        if bias is not None:
            bias.requires_grad_(False)
    if isinstance(module, nn.RNNBase):
        directions = [names[start : start + count] for start in range(0, len(names), count)]
        set_flat_weight_names(module, [quantized_names(each) for each in directions])
    module.register_load_state_dict_pre_hook(check_loaded)  # type: ignore[no-untyped-call]  # as in torch
    module._forget_choices()


def check_loaded(module: nn.Module, state: dict[str, Any], prefix: str, *others: Any) -> None:
    """Refuse float matrices that a `state_dict` has under the names of int8 ones."""
    messages = others[-1]
    for name, buffer in module.named_buffers(recurse=False):
        given = state.get(prefix + name)
        if isinstance(given, Tensor) and given.dtype is not buffer.dtype:
            messages.append(
                f"{prefix}{name} must be {buffer.dtype} in a quantized module, got {given.dtype}: "
                "load it into the float module, and call rnnjit.quantize on that"
            )


def float_class(module: nn.Module) -> type[nn.Module] | None:
    """The torch class that a dynamically quantized module of torch was made from, else None.

    None for subclasses, too: what they override is not known.
    """
    cls = type(module)
    known = sys.modules.get(_DYNAMIC)  # where it is not imported, no module is one
    if known is None or getattr(known, cls.__name__, None) is not cls:
        return None
    return _FLOAT.get(cls.__name__)


def dynamic_cell(module: Any) -> CellSpec:
    """What a dynamically quantized module of torch computes."""
    cls: Any = float_class(module)
    return CELL_OF_CLASS[cls] if cls in CELL_OF_CLASS else CELL_OF_NONLINEARITY[module.nonlinearity]


def why_not_taken(module: Any) -> str:
    """Why a dynamically quantized module of torch cannot be compiled, or ""."""
    for name, weight in module.get_weight().items():
        if not weight.is_quantized or weight.dtype is not torch.qint8:
            return f"its {name} is {weight.dtype}, and compiled modules take qint8"
        if weight.qscheme() not in (torch.per_tensor_affine, torch.per_channel_affine):
            return f"its {name} is quantized by {weight.qscheme()}"
        by_channel = weight.qscheme() is torch.per_channel_affine
        if by_channel and weight.q_per_channel_axis() != 0:
            return f"its {name} is quantized by columns, and compiled modules take rows"
        if bool(weight.q_per_channel_zero_points().any() if by_channel else weight.q_zero_point()):
            return f"the zero points of its {name} are not 0"
    return ""


def as_float_module(module: Any) -> nn.Module:
    """A module of torch with the configuration, mode, hooks and biases of a quantized one.

    Its matrices are on meta.
    """
    cls: Any = float_class(module)
    names = ("num_layers", "bias", "batch_first", "bidirectional", "nonlinearity")
    options = {name: getattr(module, name) for name in names if hasattr(module, name)}
    made: nn.Module = cls(module.input_size, module.hidden_size, **options, device="meta")
    if isinstance(made, nn.RNNBase):
        made.dropout = module.dropout  # torch warns if it constructs one layer with dropout
    own = vars(made)
    tensors = ("_parameters", "_buffers", "_modules")
    own |= {name: vars(module)[name] for name in vars(nn.Module()) if name not in tensors}
    for name, bias in module.get_bias().items():
        if getattr(made, name, None) is not None:
            value = torch.zeros(own["_parameters"][name].shape, dtype=torch.float32, device="cpu")
            value = value if bias is None else bias.detach().clone()
            setattr(made, name, nn.Parameter(value, requires_grad=False))
    return made


def matrices_of(module: Any) -> Iterator[QuantizedMatrix]:
    """The matrices of a dynamically quantized module of torch, in the order of its weights."""
    for weight in module.get_weight().values():
        values = weight.int_repr()
        if weight.qscheme() is torch.per_channel_affine:
            scale = weight.q_per_channel_scales().float()
        else:
            scale = values.new_full(values.shape[:1], weight.q_scale(), dtype=torch.float32)
        yield of_values(values, scale)

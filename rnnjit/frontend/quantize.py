"""`rnnjit.quantize`: recurrent modules whose matrices are int8, for inference."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor, nn

from rnnjit.backend import Backend
from rnnjit.dispatch.registry import resolve
from rnnjit.errors import RNNJitWarning
from rnnjit.frontend.capture import is_matrix, is_quantized, weight_names, weights_of
from rnnjit.frontend.compile import compile as compile_module
from rnnjit.frontend.compiled_base import CompiledBase
from rnnjit.frontend.compiled_recurrent import CompiledRecurrent
from rnnjit.frontend.quantized_modules import become_quantized
from rnnjit.frontend.quantized_recurrent import int8_plan, quantized_recurrent
from rnnjit.frontend.reachable import reachable_modules
from rnnjit.quantization import QuantizedMatrix, quantize_matrix
from rnnjit.runtime.torch_private import parameters_of

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def quantize(module: ModuleT, *, backend: str | Backend = "auto", inplace: bool = False) -> ModuleT:
    """Replace every recurrent module in `module` by a compiled one whose matrices are int8.

    The matrices take a quarter of the memory. Each row has a scale of its own; the rows that they
    multiply (of x and of the states) are quantized to int8 for each product, too. Everything else
    is computed in float32: see docs/quantization.md. The results never require a gradient, as those
    of torch's dynamically quantized modules; dropout between layers is on in training mode.

    Arguments, results, packed sequences, streams and `rnnjit.explain` are as for modules that
    `rnnjit.compile` made. Input and states must be float32; under autocast they are converted to
    it. The `state_dict` holds each matrix as int8 (`weight_ih_l0`), the scales of its rows
    (`weight_ih_l0_scale`) and the sums of its rows (`weight_ih_l0_sum`), and the biases as they
    were. These are buffers; the biases are Parameters that require no gradient.

    Args:
        module: as in `rnnjit.compile`, compiled or not, with float32 weights. What is quantized
            already stays as it is. Modules that `compile` would leave eager stay as they are, with
            an `RNNJitWarning`, as do those whose matrices are computed from other tensors
            (parametrizations, pruning), and a `Recurrent` whose cell draws random numbers or
            computes more of x than one product. The cells of the others are traced, in evaluation
            mode: what is assigned to their attributes later does not count.
        backend: as in `rnnjit.compile`.
        inplace: change `module` itself rather than a copy, and return it.

    Returns:
        `module` itself if `inplace`, else a copy that shares no tensors with it.

    Raises:
        TypeError: `module` is not a module, or cannot be copied.
        ValueError: `module` contains nothing to quantize, or a weight is not float32 or has values
            that are not finite, or no such backend is installed.

    Example:
        >>> lstm = quantize(torch.nn.LSTM(3, 5))
        >>> lstm.weight_ih_l0.dtype, lstm(torch.zeros(4, 2, 3))[0].shape
        (torch.int8, torch.Size([4, 2, 5]))
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be a torch.nn.Module, got {type(module).__name__}")
    resolve(backend)
    if not inplace:
        try:
            module = copy.deepcopy(module)
        except Exception as error:
            raise TypeError(
                f"{type(module).__name__} cannot be copied ({type(error).__name__}: {error}): "
                "use rnnjit.quantize(module, inplace=True)"
            ) from error
    compiled = compile_module(module, backend=backend, inplace=True)
    found = [
        (path, each)
        for path, each in reachable_modules(compiled)
        if isinstance(each, CompiledBase) and not is_quantized(each)
    ]
    left: dict[str, list[str]] = {}
    ready: list[Callable[[], None]] = []
    for path, each in found:
        step = _step(path, each)
        if isinstance(step, str):
            where = type(each).__name__ + (f" at {path!r}" if path else "")
            left.setdefault(step, []).append(where)
        else:
            ready.append(step)
    if left:
        parts = "; ".join(f"{', '.join(names)} ({why})" for why, names in left.items())
        if not ready and not any(is_quantized(each) for _, each in reachable_modules(compiled)):
            raise ValueError(f"module contains nothing to quantize: {parts}")
        warnings.warn(f"left in float32: {parts}", RNNJitWarning, stacklevel=2)
    for step in ready:  # once all are checked
        step()
    return compiled


def _step(path: str, module: CompiledBase) -> Callable[[], None] | str:
    """What quantizes a compiled module, or why it stays as it is.

    Raises:
        ValueError: a weight is not float32, or has values that are not finite.
    """
    if isinstance(module, CompiledRecurrent):
        plan = int8_plan(module)
        return plan if isinstance(plan, str) else quantized_recurrent(module, plan)
    if why := _why_left(module):
        return why
    return partial(become_quantized, module, list(_matrices(path, module)))


def _why_left(module: CompiledBase) -> str:
    """Why a compiled module stays as it is, or ""."""
    own = parameters_of(module)
    missing = [name for name in weight_names(module) if not isinstance(own.get(name), Tensor)]
    if missing:
        return f"its {missing[0]} is no Parameter, but computed from others: make it one first"
    return "what torch's forward uses was assigned" if module._weights_assigned else ""


def _matrices(path: str, module: nn.Module) -> Iterator[QuantizedMatrix]:
    """The quantized matrices of a module, in the order of its weights.

    Raises:
        ValueError: a weight is not float32, or has values that are not finite.
    """
    prefix = f"{path}." if path else ""
    for name, weight in zip(weight_names(module), weights_of(module), strict=True):
        if weight.dtype is not torch.float32:
            raise ValueError(
                f"{prefix}{name} must be torch.float32 to be quantized, got {weight.dtype}: "
                "module.float() converts"
            )
        if is_matrix(name):
            try:
                yield quantize_matrix(weight)
            except ValueError as error:
                raise ValueError(f"{prefix}{name}: {error}") from None

"""`rnnjit.compile`: the walk that puts a `CompiledRNN` in the place of every nn.RNN of a model."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from typing import Any, TypeVar

from torch import Tensor, nn

from rnnjit.backend import Backend
from rnnjit.errors import RNNJitWarning
from rnnjit.module import CompiledRNN
from rnnjit.registry import resolve

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def compile(  # noqa: A001 - the name users know from torch.compile
    module: ModuleT, *, backend: str | Backend = "auto", inplace: bool = False
) -> ModuleT | CompiledRNN:
    """Put a compiled stand-in in the place of every nn.RNN in `module`.

    The result shares its Parameters and buffers with `module`: optimizers made before or after see
    both, and training one trains the other. Everything else of the model is copied, so that the
    original stays as it is and runs eager.

    Args:
        module: an nn.RNN, or any module that contains some. An RNN that stands in several places
            is compiled once and stays shared. LSTM and GRU stay eager, and so do subclasses of
            nn.RNN that have a `forward` of their own (with a warning).
        backend: "auto" (the fastest backend that accepts the call), the name of an installed
            backend (see `rnnjit.backends`), or a `Backend`. A backend that is named is never
            replaced by another: a call that it declines raises `UnsupportedError`.
        inplace: change `module` itself rather than a copy of its structure, and return it.

    Raises:
        TypeError: `module` is no module, or `backend` is of the wrong type.
        ValueError: `module` contains no nn.RNN, or no installed backend has that name.

    Example:
        >>> import torch
        >>> rnn = torch.nn.RNN(8, 16)
        >>> fast = compile(rnn)
        >>> fast.weight_hh_l0 is rnn.weight_hh_l0
        True
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be a torch.nn.Module, got {type(module).__name__}")
    resolve(backend)
    rnns = list(_compilable(module))
    if inplace:
        for rnn in rnns:
            _become_compiled(rnn, rnn.__dict__, backend)
        return module
    memo: dict[int, Any] = {id(tensor): tensor for tensor in _tensors(module)}
    for rnn in rnns:
        compiled = CompiledRNN.__new__(CompiledRNN)
        _become_compiled(compiled, _shallow_state(rnn, memo), backend, type(rnn))
        memo[id(rnn)] = compiled
    try:
        return copy.deepcopy(module, memo)
    except Exception as error:
        raise TypeError(
            f"{type(module).__name__} cannot be copied ({type(error).__name__}: {error}): "
            "use rnnjit.compile(module, inplace=True)"
        ) from error


def _compilable(module: nn.Module) -> Iterator[nn.Module]:
    """Every distinct module to replace, checked that there is one."""
    found = False
    for name, child in module.named_modules():
        if isinstance(child, CompiledRNN):
            found = True
            yield child
        elif isinstance(child, nn.RNN):
            found = True
            if type(child).forward is nn.RNN.forward and "forward" not in vars(child):
                yield child
            else:
                where = f" at {name!r}" if name else ""
                warnings.warn(
                    f"{type(child).__name__}{where} overrides forward and is left as it is",
                    RNNJitWarning,
                    stacklevel=3,
                )
    if not found:
        raise ValueError(
            f"module contains no nn.RNN to compile: {type(module).__name__} has "
            f"{sum(1 for _ in module.modules())} modules, none of them one"
        )


def _become_compiled(
    target: nn.Module,
    state: dict[str, Any],
    backend: str | Backend,
    source: type[nn.Module] | None = None,
) -> None:
    source = source or type(target)
    if not issubclass(source, CompiledRNN):
        state["_source_class"] = source
    state.update(backend=backend, _choices={})
    state.pop("nonlinearity", None)
    target.__class__ = CompiledRNN
    target.__dict__ = state


def _shallow_state(rnn: nn.Module, memo: dict[int, Any]) -> dict[str, Any]:
    """The module's attributes, its containers copied one level deep and their contents shared."""
    state = dict(vars(rnn))
    for key, value in state.items():
        if key == "_modules":
            state[key] = {name: copy.deepcopy(child, memo) for name, child in value.items()}
        elif isinstance(value, (dict, list, set)):
            state[key] = copy.copy(value)
    return state


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    """Every tensor that a module holds as parameter, buffer or plain attribute."""
    for child in module.modules():
        for values in (child._parameters, child._buffers, vars(child)):
            yield from (value for value in values.values() if isinstance(value, Tensor))

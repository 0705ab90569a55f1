"""`rnnjit.compile`: the walk that puts compiled modules in the place of torch's."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from typing import Any, TypeVar, overload

import torch
from torch import Tensor, nn

from rnnjit.backend import Backend
from rnnjit.calls import Calls
from rnnjit.errors import RNNJitWarning
from rnnjit.module import CompiledRNN
from rnnjit.rebuild import REPLACED, compiled_class
from rnnjit.registry import resolve
from rnnjit.rnncell import CompiledRNNCell

ModuleT = TypeVar("ModuleT", bound=nn.Module)


@overload
def compile(  # noqa: A001 - as below
    module: nn.RNN, *, backend: str | Backend = ..., inplace: bool = ...
) -> CompiledRNN: ...


@overload
def compile(  # noqa: A001 - as below
    module: nn.RNNCell, *, backend: str | Backend = ..., inplace: bool = ...
) -> CompiledRNNCell: ...


@overload
def compile(  # noqa: A001 - as below
    module: ModuleT, *, backend: str | Backend = ..., inplace: bool = ...
) -> ModuleT: ...


def compile(  # noqa: A001 - the name users know from torch.compile
    module: ModuleT, *, backend: str | Backend = "auto", inplace: bool = False
) -> ModuleT | Calls:
    """Put a compiled stand-in in the place of every nn.RNN and nn.RNNCell in `module`.

    The result shares its Parameters and buffers with `module`: optimizers made before or after see
    both, training one trains the other, and `.to()` on one converts the Parameters of both.
    Everything else of the model is copied, so that the original stays as it is and runs eager.

    Args:
        module: an nn.RNN, or any module that contains some, in submodules or in plain lists, tuples
            and dicts. An RNN that stands in several places is compiled once and stays shared. LSTM
            and GRU stay eager, and so do subclasses of nn.RNN that have a `forward` of their own
            (with a warning). A module that is compiled already is compiled anew, for `backend`.
        backend: "auto" (the fastest backend that accepts the call, as far as was measured), the
            name of an installed backend (see `rnnjit.backends`), or a `Backend`. A backend that is
            named is never replaced by another: a call that it declines raises `UnsupportedError`.
        inplace: change `module` itself rather than a copy of its structure, and return it.

    Returns:
        `module` itself if `inplace`, else a copy of its structure over the same tensors.

    Raises:
        TypeError: `module` is no module or cannot be copied, or `backend` is of the wrong type.
        ValueError: `module` contains no nn.RNN or nn.RNNCell, or no such backend is installed.

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
    rnns = _compilable(module)
    if inplace:
        for rnn in rnns:
            _become_compiled(rnn, vars(rnn), backend)
        return module
    memo: dict[int, Any] = {id(tensor): tensor for tensor in _shared_tensors(module)}
    shells = {id(rnn): _shell(rnn) for rnn in rnns}
    memo.update(shells)
    try:
        for rnn in rnns:
            _become_compiled(shells[id(rnn)], copy.deepcopy(vars(rnn), memo), backend)
        return copy.deepcopy(module, memo)
    except Exception as error:
        raise TypeError(
            f"{type(module).__name__} cannot be copied ({type(error).__name__}: {error}): "
            "use rnnjit.compile(module, inplace=True)"
        ) from error


def copy_sharing_parameters(module: ModuleT) -> ModuleT:
    """A copy of `module` with buffers of its own, and whose Parameters are those of `module`."""
    buffers = {id(buffer) for buffer in module.buffers()}
    shared = {id(t): t for t in _shared_tensors(module) if id(t) not in buffers}
    return copy.deepcopy(module, shared)


def reachable_modules(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every distinct module in `module` with its path, as `named_modules` but also in containers.

    A list, tuple or dict that is a plain attribute keeps its modules from `named_modules`; they
    run all the same.
    """
    seen: set[int] = set()
    pending: list[tuple[str, Any]] = [("", module)]
    while pending:
        path, value = pending.pop()
        if id(value) in seen:
            continue
        inside: list[tuple[str, Any]] = []
        if isinstance(value, nn.Module):
            seen.add(id(value))
            yield path, value
            prefix = f"{path}." if path else ""
            inside = [(prefix + name, child) for name, child in value._modules.items()]
            inside += [(prefix + name, v) for name, v in vars(value).items() if name != "_modules"]
        elif isinstance(value, (list, tuple)):
            seen.add(id(value))
            inside = [(f"{path}[{index}]", item) for index, item in enumerate(value)]
        elif isinstance(value, dict):
            seen.add(id(value))
            inside = [(f"{path}[{key!r}]", item) for key, item in value.items()]
        pending += reversed(inside)


def overrides_forward(rnn: nn.Module) -> bool:
    """Whether an RNN has a `forward` of its own, which nothing but itself can compute."""
    own: Any = type(rnn).forward
    return own not in [each.forward for each in REPLACED] or "forward" in vars(rnn)


def _compilable(module: nn.Module) -> list[nn.Module]:
    """Every distinct RNN to replace; warns of those that must be left alone."""
    found: list[nn.Module] = []
    left: list[str] = []
    for path, child in reachable_modules(module):
        if isinstance(child, Calls):
            found.append(child)
        elif isinstance(child, REPLACED):
            if overrides_forward(child):
                left.append(type(child).__name__ + (f" at {path!r}" if path else ""))
            else:
                found.append(child)
    if left:
        verb = "overrides forward and is" if len(left) == 1 else "override forward and are"
        warnings.warn(f"{', '.join(left)} {verb} left as before", RNNJitWarning, stacklevel=3)
    elif not found:
        scripted = any(isinstance(child, torch.jit.ScriptModule) for child in module.modules())
        advice = ". Compile the model that was scripted" if scripted else ""
        raise ValueError(
            f"module contains no nn.RNN or nn.RNNCell to compile: {type(module).__name__} has "
            f"{sum(1 for _ in module.modules())} modules, none of them one{advice}"
        )
    return found


def _shell(rnn: nn.Module) -> Calls:
    cls = compiled_class(type(rnn))
    return cls.__new__(cls)


def _become_compiled(rnn: nn.Module, state: dict[str, Any], backend: str | Backend) -> None:
    rnn.__class__ = compiled_class(type(rnn))
    rnn.__dict__ = state
    state.pop("backend", None)
    rnn.backend = backend  # type: ignore[assignment]  # a property of its new class


def _shared_tensors(module: nn.Module) -> Iterator[Tensor]:
    """Every tensor that a module holds as parameter, buffer, plain attribute or flat weight."""
    for _, child in reachable_modules(module):
        held: list[dict[str, Any]] = [vars(child)]
        held += [child._parameters, child._buffers]
        for values in held:
            yield from (value for value in values.values() if isinstance(value, Tensor))
        if isinstance(child, nn.RNNBase):
            yield from (weight for weight in child._flat_weights if isinstance(weight, Tensor))

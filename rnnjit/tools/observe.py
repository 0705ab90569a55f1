"""Observes the calls that a model makes to its RNNs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from rnnjit.backend import Backend
from rnnjit.dispatch.registry import resolve
from rnnjit.frontend.adapted import Adapted
from rnnjit.frontend.compile import why_left
from rnnjit.frontend.compiled_base import CompiledBase
from rnnjit.frontend.compiled_class import intercept, replaced
from rnnjit.frontend.reachable import copy_sharing_parameters, reachable_modules
from rnnjit.frontend.recurrent import Recurrent
from rnnjit.reference import BACKEND as EAGER
from rnnjit.runtime.torch_private import forget_load_hooks

#: See `observe`.
SeeAdapted: TypeAlias = Callable[[str, Adapted, "Backend | None", Any, Any], None]


class Seen(NamedTuple):
    """An observed call to an RNN inside a model.

    Attributes:
        name: path of the RNN in the model, "" for the model itself.
        kind: its `repr`, such as `RNN(8, 16)`.
        module: a copy of the RNN that shares its Parameters. It is the RNN that a `forward` of a
            subclass calls by `super()`.
        wanted: the backend that the user named, or None for "auto" and for uncompiled modules.
        input: as in `forward`.
        hx: as in `forward`.
        return_states: as in `forward`.
        reset: as in `forward`, where the call is seen with its resets; else None.
        reset_to: as `reset`.
    """

    name: str
    kind: str
    module: nn.Module
    wanted: Backend | None
    input: Tensor | PackedSequence
    hx: Tensor | None
    return_states: bool
    reset: Any = None
    reset_to: Any = None


def observe(
    module: nn.Module,
    inputs: tuple[Any, ...],
    see: Callable[[Seen], None],
    named: Mapping[str, Any] | None = None,
    see_adapted: SeeAdapted | None = None,
    see_resets: Callable[[Seen], bool] | None = None,
) -> None:
    """Run `module(*inputs, **named)` once and pass the first call to each RNN in it to `see`.

    A call with `reset` is seen as the call that runs in its place: that of the segments between
    resets, as one packed batch. That of a `Recurrent` is seen with its resets.

    `see_resets` gets the first call with `reset` of any other module, too, and says whether that is
    all there is to see of the module: not the packed batch.

    `see_adapted` gets the name of each module whose loop `rnnjit.adapt` describes, the module, the
    backend that the user named (None for "auto"), and the arguments of its first call.

    `see` runs at the point of the call, since the model may disable gradients or enable autocast
    around an RNN. A copy of the module runs, on torch's own layers, so that neither the module nor
    torch's random generators change.
    """
    replica = copy_sharing_parameters(module)
    for name, child in reachable_modules(replica):
        if isinstance(child, Adapted):
            _watch(name, child, see_adapted)
        elif isinstance(child, (*replaced(), CompiledBase)) and not why_left(child, None):
            _Observer(name, child, see, see_resets)
    with torch.random.fork_rng():
        replica(*inputs, **(named or {}))


def _watch(name: str, module: Adapted, see: SeeAdapted | None) -> None:
    """Let the original loop of an adapted module run, and pass its first call to `see`."""
    wanted = resolve(module._dispatch.backend)
    pending = [] if see is None else [see]

    def first_call(_: nn.Module, args: Any, kwargs: Any) -> None:
        if pending:
            module._dispatch.backend = "auto" if wanted is None else wanted
            pending.pop()(name, module, wanted, args, kwargs)
        module._dispatch.backend = EAGER

    module.register_forward_pre_hook(first_call, with_kwargs=True)


def wanted_by(module: nn.Module) -> Backend | None:
    """The backend that the user named, or None for "auto" and for uncompiled modules."""
    return resolve(module.backend) if isinstance(module, CompiledBase) else None


def kind_of(module: nn.Module) -> str:
    """The `repr` without the submodules of a parametrized RNN."""
    return f"{repr(module).partition('(')[0]}({module.extra_repr()})"


class _Observer:
    """Passes the first call of an RNN to `see`, those with resets to `see_resets` before."""

    def __init__(
        self,
        name: str,
        rnn: nn.Module,
        see: Callable[[Seen], None],
        see_resets: Callable[[Seen], bool] | None,
    ) -> None:
        self._name, self._wanted, self._see = name, wanted_by(rnn), [see]
        self._see_resets = see_resets
        source = type(rnn)
        if isinstance(rnn, CompiledBase):
            rnn.backend = EAGER
        self._base = intercept(rnn, self._forward)
        overrides = source.forward is not self._base.forward
        self._class: Any = self._base if overrides else source

    def _forward(self, rnn: nn.Module, *args: Any, **kwargs: Any) -> Any:
        *given, reset, reset_to = _arguments(*args, **kwargs)
        if self._see and (reset is None or isinstance(rnn, Recurrent)):
            self._see.pop()(self._seen(rnn, *given, reset, reset_to))
        elif self._see and self._takes_resets(rnn, *given, reset, reset_to):
            self._see.pop()
        forward: Any = self._base.forward
        return forward(rnn, *args, **kwargs)

    def _takes_resets(self, rnn: nn.Module, *given: Any) -> bool:
        return self._see_resets is not None and self._see_resets(self._seen(rnn, *given))

    def _seen(self, rnn: nn.Module, *given: Any) -> Seen:
        copy = self._class.__new__(self._class)
        vars(copy).update(vars(rnn))
        forget_load_hooks(copy)
        return Seen(self._name, kind_of(rnn), copy, self._wanted, *given)


def _arguments(
    input: Any,  # noqa: A002 - nn.RNN's own name
    hx: Any = None,
    reset: Any = None,
    reset_to: Any = None,
    return_states: bool = False,
) -> tuple[Any, Any, bool, Any, Any]:
    return input, hx, return_states, reset, reset_to

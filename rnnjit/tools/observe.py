"""Watching the calls that a model makes to its RNNs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from rnnjit.backend import Backend
from rnnjit.dispatch.registry import resolve
from rnnjit.frontend.class_rewrite import REPLACED
from rnnjit.frontend.compile import copy_sharing_parameters, reachable_modules, why_left
from rnnjit.frontend.compiled_base import CompiledBase
from rnnjit.reference import BACKEND as EAGER


class Seen(NamedTuple):
    """A call to an RNN inside a model, as it is made.

    Attributes:
        name: path of the RNN in the model, "" for the model itself.
        module: the RNN, or a copy of it over the same Parameters.
        wanted: the backend that it names, or None for "auto" and for one of torch's.
        input: as in its `forward`.
        hx: as in its `forward`.
    """

    name: str
    module: nn.Module
    wanted: Backend | None
    input: Tensor | PackedSequence
    hx: Tensor | None


def observe(module: nn.Module, inputs: tuple[Any, ...], see: Callable[[Seen], None]) -> None:
    """Run `module(*inputs)` once and hand the first call to each RNN in it to `see`.

    It is handed over where it is made: the model may turn gradients off or autocast on around an
    RNN. A copy of the module runs, on torch's own layers, so that neither it nor torch's random
    generators change.
    """
    replica = copy_sharing_parameters(module)
    for name, child in reachable_modules(replica):
        if not isinstance(child, (*REPLACED, CompiledBase)) or why_left(child, None):
            continue
        wanted = wanted_by(child)
        child.register_forward_pre_hook(_once(name, wanted, see), with_kwargs=True)
        if isinstance(child, CompiledBase):
            child.backend = EAGER
    with torch.random.fork_rng():
        replica(*inputs)


def wanted_by(module: nn.Module) -> Backend | None:
    """The backend that a module names, or None for "auto" and for one of torch's."""
    return resolve(module.backend) if isinstance(module, CompiledBase) else None


def _once(
    name: str, wanted: Backend | None, see: Callable[[Seen], None]
) -> Callable[[nn.Module, Any, Any], None]:
    """A hook that hands over the first call that it meets."""
    pending = [see]

    def hook(rnn: nn.Module, args: Any, kwargs: Any) -> None:
        if pending:
            given = _arguments(*args, **kwargs)
            pending.pop()(Seen(name, rnn, wanted, *given))

    return hook


def _arguments(input: Any, hx: Any = None) -> tuple[Any, Any]:  # noqa: A002 - nn.RNN's own name
    return input, hx

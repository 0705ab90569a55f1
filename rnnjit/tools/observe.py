"""Observes the calls that a model makes to its RNNs."""

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
    """An observed call to an RNN inside a model.

    Attributes:
        name: path of the RNN in the model, "" for the model itself.
        module: a copy of the RNN that shares its Parameters.
        wanted: the backend that the user named, or None for "auto" and for uncompiled modules.
        input: as in `forward`.
        hx: as in `forward`.
    """

    name: str
    module: nn.Module
    wanted: Backend | None
    input: Tensor | PackedSequence
    hx: Tensor | None


def observe(module: nn.Module, inputs: tuple[Any, ...], see: Callable[[Seen], None]) -> None:
    """Run `module(*inputs)` once and pass the first call to each RNN in it to `see`.

    `see` runs at the point of the call, since the model may disable gradients or enable autocast
    around an RNN. A copy of the module runs, on torch's own layers, so that neither the module nor
    torch's random generators change.
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
    """The backend that the user named, or None for "auto" and for uncompiled modules."""
    return resolve(module.backend) if isinstance(module, CompiledBase) else None


def _once(
    name: str, wanted: Backend | None, see: Callable[[Seen], None]
) -> Callable[[nn.Module, Any, Any], None]:
    """A forward pre-hook that passes the first call to `see`."""
    pending = [see]

    def hook(rnn: nn.Module, args: Any, kwargs: Any) -> None:
        if pending:
            given = _arguments(*args, **kwargs)
            pending.pop()(Seen(name, rnn, wanted, *given))

    return hook


def _arguments(input: Any, hx: Any = None) -> tuple[Any, Any]:  # noqa: A002 - nn.RNN's own name
    return input, hx

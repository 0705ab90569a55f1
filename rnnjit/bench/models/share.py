"""The recurrent part of a call, alone, for the share of the time that it takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rnnjit.bench.models.case import ModelCase
from rnnjit.bench.models.nested import leaves, mapped, tensors_in

#: Calls of different shapes that are repeated; a decoder makes thousands of one shape.
_MOST_KINDS = 64


@dataclass
class _Recorded:
    module: nn.Module
    args: tuple[Any, ...]
    named: dict[str, Any]
    calls: int = 0


def recurrent_part(
    case: ModelCase, model: nn.Module, call: Callable[[], object], *, training: bool
) -> Callable[[], None] | None:
    """Repeat what the recurrent modules of an eager model do in a call, without the rest of it.

    The arguments of each recurrent call are recorded, one call of each module and shape.

    Args:
        case: says which modules are recurrent.
        model: the eager model.
        call: a call of it.
        training: whether gradients are computed.

    Returns:
        A function that makes the same number of recurrent calls as `call`, in training with their
        backward pass; it changes no gradient. None if the model makes none.
    """
    recorded = _record(case, model, call)

    def repeat() -> None:
        with torch.set_grad_enabled(training):
            for each in recorded:
                for _ in range(each.calls):
                    _repeat(each)

    return repeat if recorded else None


def _record(case: ModelCase, model: nn.Module, call: Callable[[], object]) -> list[_Recorded]:
    found: dict[Any, _Recorded] = {}

    def see(module: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        shapes = tuple(getattr(leaf, "shape", None) for leaf in leaves((args, named)))
        key = id(module), shapes
        if key not in found and len(found) < _MOST_KINDS:
            found[key] = _Recorded(module, *mapped(_copied, (args, named)))
        if key in found:
            found[key].calls += 1

    hooks = [
        module.register_forward_pre_hook(see, with_kwargs=True)
        for module in _outermost(model, case.layers)
    ]
    try:
        call()
    finally:
        for hook in hooks:
            hook.remove()
    return list(found.values())


def _outermost(module: nn.Module, kinds: tuple[type, ...]) -> list[nn.Module]:
    """The modules of these classes, but for those inside another of them."""
    if isinstance(module, kinds):
        return [module]
    return [found for child in module.children() for found in _outermost(child, kinds)]


def _copied(leaf: Tensor) -> Tensor:
    return leaf.detach().clone().requires_grad_(leaf.requires_grad)


def _repeat(recorded: _Recorded) -> None:
    found = recorded.module(*recorded.args, **recorded.named)
    outputs = [leaf for leaf in tensors_in(found) if leaf.requires_grad]
    given = [*tensors_in((recorded.args, recorded.named)), *recorded.module.parameters()]
    wanted = [leaf for leaf in given if leaf.requires_grad]
    if outputs and wanted:
        ones = [torch.ones_like(output) for output in outputs]
        torch.autograd.grad(outputs, wanted, ones, allow_unused=True)

"""The modules and tensors that a model holds, also in lists, tuples and dicts."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, TypeVar

from torch import Tensor, nn

from rnnjit.runtime.torch_private import children_of

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def copy_sharing_parameters(module: ModuleT) -> ModuleT:
    """Copy a module and its buffers; the copy shares the Parameters of `module`."""
    buffers = {id(buffer) for buffer in module.buffers()}
    shared = {id(t): t for t in shared_tensors(module) if id(t) not in buffers}
    return copy.deepcopy(module, shared)


def reachable_modules(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield `(path, module)` for every distinct module in `module`.

    Unlike `named_modules`, this also finds modules in lists, tuples and dicts that are plain
    attributes.
    """
    for path, value in reachable(module):
        if isinstance(value, nn.Module):
            yield path, value


def reachable(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield `(path, value)` for every distinct module and tensor that a module holds."""
    seen: set[int] = set()
    pending: list[tuple[str, Any]] = [("", module)]
    while pending:
        path, value = pending.pop()
        if not isinstance(value, (nn.Module, Tensor, list, tuple, dict)) or id(value) in seen:
            continue
        seen.add(id(value))
        inside: list[tuple[str, Any]] = []
        if isinstance(value, (nn.Module, Tensor)):
            yield path, value
        if isinstance(value, nn.Module):
            prefix = f"{path}." if path else ""
            inside = [(prefix + name, child) for name, child in children_of(value).items()]
            inside += [(prefix + name, v) for name, v in vars(value).items() if name != "_modules"]
        elif isinstance(value, (list, tuple)):
            inside = [(f"{path}[{index}]", item) for index, item in enumerate(value)]
        elif isinstance(value, dict):
            inside = [(f"{path}[{key!r}]", item) for key, item in value.items()]
        pending += reversed(inside)


def shared_tensors(module: nn.Module) -> Iterator[Tensor]:
    """Every tensor that a module holds, also in lists, tuples and dicts, and as a flat weight."""
    return (value for _, value in reachable(module) if isinstance(value, Tensor))

"""Tensors in the arguments and results of models, in any nesting."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor


def leaves(value: Any) -> Iterator[Any]:
    """What tuples, lists and mappings hold, at any depth; a value that is none of these itself."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (tuple, list)):
        for each in value:
            yield from leaves(each)
    else:
        yield value


def tensors_in(value: Any) -> list[Tensor]:
    """The tensors among them."""
    return [each for each in leaves(value) if isinstance(each, Tensor)]


def mapped(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    """The same nesting with each tensor replaced by what a function makes of it."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, dict):
        return {name: mapped(function, each) for name, each in value.items()}
    if not isinstance(value, (tuple, list)):
        return value
    found = [mapped(function, each) for each in value]
    # A named tuple, such as a PackedSequence, takes its fields one by one.
    return type(value)(*found) if hasattr(value, "_fields") else type(value)(found)

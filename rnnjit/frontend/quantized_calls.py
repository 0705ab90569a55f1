"""Calls of quantized modules: outside of autograd and autocast, in float32."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from rnnjit.runtime.torch_private import any_autocast

Found = TypeVar("Found")
#: What autocast may have made of the results of the modules before.
_LOWER = (torch.bfloat16, torch.float16)


def must_be_apart(x: Any) -> bool:
    """Whether a call of a quantized module has to go through `apart`."""
    return torch.is_grad_enabled() or _under_autocast(x)


def apart(run: Callable[[Any, Any], Found], x: Any, hx: Any) -> Found:
    """Run a call where torch neither records nor casts.

    Under autocast, x and states that it has cast are converted to float32 before.

    Args:
        run: a function of x and hx.
        x: as in the `forward` of the module.
        hx: as in the `forward` of the module.
    """
    if not _under_autocast(x):
        with torch.no_grad():
            return run(x, hx)
    data = x.data if isinstance(x, PackedSequence) else x
    with torch.no_grad(), torch.autocast(data.device.type, enabled=False):
        return run(_in_float32(x), _in_float32(hx))


def _under_autocast(x: Any) -> bool:
    if not any_autocast():
        return False
    data = x.data if isinstance(x, PackedSequence) else x
    return isinstance(data, Tensor) and torch.is_autocast_enabled(data.device.type)


def _in_float32(value: Any) -> Any:
    if isinstance(value, PackedSequence):
        return PackedSequence(_in_float32(value.data), *tuple(value)[1:])
    if isinstance(value, (tuple, list)):
        return tuple([_in_float32(each) for each in value])
    low = isinstance(value, Tensor) and value.dtype in _LOWER
    return value.float() if low else value

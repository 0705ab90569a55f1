"""Between tensors of bfloat16 or float16 and the float32 that kernels compute with.

Of such a layer the kernels read and write x, the weights, the first state, y and what is
saved as tensors of this dtype. The states but the first, which run through many steps, and all
gradients but that of x are float32 inside; they are rounded once, when a pass is done.
"""

from __future__ import annotations

import torch
from torch import Tensor

_NARROW = (torch.bfloat16, torch.float16)


def computed(dtype: torch.dtype) -> torch.dtype:
    """What kernels compute with for tensors of a dtype."""
    return torch.float32 if dtype in _NARROW else dtype


def widened(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """States as the kernels take them: all but the first as they compute with them."""
    if tensors[0].dtype not in _NARROW:
        return tensors
    return (tensors[0], *[tensor.float() for tensor in tensors[1:]])


def narrowed(states: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Last states as the caller takes them, from those that the kernels write."""
    dtype = states[0].dtype
    return (states[0], *[state.to(dtype) for state in states[1:]])


def rounded(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """A result of a kernel as a tensor of the call's dtype."""
    return tensor if tensor is None or tensor.dtype is dtype else tensor.to(dtype)

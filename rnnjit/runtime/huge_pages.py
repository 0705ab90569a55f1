"""Asks the kernel for huge pages below large tensors, before anything is written to them.

Every page of fresh memory costs a page fault, in which the system fills it with zeros. Large blocks
are fresh in every call, since the C library gives them back when they are freed. On Linux a huge
page of 2 MiB costs about one fault in place of 512 (madvise(2), MADV_HUGEPAGE).
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

#: Bytes from which on a tensor has huge pages: it is sure to contain a whole one.
LARGE = 1 << 22
_ADVICE: int | None = getattr(mmap, "MADV_HUGEPAGE", None)


def advise(tensor: Tensor) -> Tensor:
    """Ask for huge pages below a contiguous CPU tensor, if it is large; return it.

    Where the system has no huge pages, nothing happens.
    """
    size = tensor.numel() * tensor.element_size()
    if size >= LARGE and _ADVICE is not None and tensor.is_cpu:
        start = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
        length = (tensor.data_ptr() + size) // mmap.PAGESIZE * mmap.PAGESIZE - start
        _madvise()(start, length, _ADVICE)
    return tensor


def new_empty(like: Tensor, *shape: int) -> Tensor:
    """`like.new_empty(*shape)`, with huge pages if it is large."""
    return advise(like.new_empty(*shape))


def empty_like(like: Tensor) -> Tensor:
    """`torch.empty_like(like)` of a contiguous tensor, with huge pages if it is large."""
    return advise(torch.empty_like(like))


def clone(tensor: Tensor) -> Tensor:
    """A copy of a contiguous tensor, with huge pages if it is large."""
    size = tensor.numel() * tensor.element_size()
    return empty_like(tensor).copy_(tensor) if size >= LARGE else tensor.clone()


def allocator(size: int) -> Callable[..., Tensor]:
    """`(like, *shape) -> Tensor`: the faster of `Tensor.new_empty` and `new_empty` for bytes."""
    return new_empty if size >= LARGE else Tensor.new_empty


@cache
def _madvise() -> Callable[[int, int, int], int]:
    function = ctypes.CDLL(None).madvise
    function.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    found: Callable[[int, int, int], int] = function
    return found

"""Tensors that end, or begin, at a page that nobody may touch.

Reading or writing one element too far kills the process, whatever is done with the value. So what
uses this runs in a process of its own, and says what it is about to do before it does it.
"""

from __future__ import annotations

import ctypes
import mmap
import weakref
from contextlib import contextmanager
from functools import cache
from math import prod
from typing import Any

import pytest
import torch

PAGE = mmap.PAGESIZE
#: What fresh memory is full of: each float of it is NaN.
FILL = 0xFF
#: Bytes may hold anything, and so they are aligned for anything.
_ALIGNMENT = {torch.uint8: 8}

_empty = torch.empty


@cache
def _libc() -> Any:
    found = ctypes.CDLL(None, use_errno=True)
    found.mmap.restype = ctypes.c_void_p
    found.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    found.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    found.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    return found


class Region:
    """Whole pages between two that fault, and a block flush with one end of them.

    Attributes:
        start, size: of the block, in bytes.
        writable: whether it may be written to now.
    """

    def __init__(self, size: int, alignment: int, at_end: bool) -> None:
        self.size = size
        self._length = -(-size // PAGE) * PAGE
        none, flags = 0, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        base = _libc().mmap(None, self._length + 2 * PAGE, none, flags, -1, 0)
        if base == ctypes.c_void_p(-1).value:
            raise OSError(ctypes.get_errno(), "mmap")
        self._pages = base + PAGE
        room = (self._length - size) // alignment * alignment
        self.start = self._pages + (room if at_end else 0)
        self.protect(writable=True)
        ctypes.memset(self._pages, FILL, self._length)

    @property
    def end(self) -> int:
        """The address behind the block."""
        return self.start + self.size

    def protect(self, *, writable: bool) -> None:
        """Let the block be read and written, or only read."""
        self.writable = writable
        allowed = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        if _libc().mprotect(self._pages, self._length, allowed):
            raise OSError(ctypes.get_errno(), "mprotect")

    def check(self) -> None:
        """Raise AssertionError if what lies beside the block on its pages was written to."""
        before, after = self.start - self._pages, self._pages + self._length - self.end
        beside = ctypes.string_at(self._pages, before) + ctypes.string_at(self.end, after)
        if beside.count(FILL) != len(beside):
            raise AssertionError(f"bytes beside a block of {self.size} bytes were written to")

    def unmap(self) -> None:
        """Give the memory back; whoever still uses it faults."""
        _libc().munmap(self._pages - PAGE, self._length + 2 * PAGE)


class Guards:
    """Makes guarded tensors, and knows those that are alive.

    Attributes:
        at_end: whether blocks end at the page behind them; else they begin at the page before.
    """

    def __init__(self) -> None:
        self.at_end = True
        self._regions: dict[int, Region] = {}

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """A tensor that is aligned to its elements alone, full of NaN."""
        size = prod(shape) * dtype.itemsize
        if size == 0:
            return _empty(shape, dtype=dtype)
        region = Region(size, _ALIGNMENT.get(dtype, dtype.itemsize), self.at_end)
        self._regions[region.start] = region
        owner = (ctypes.c_char * size).from_address(region.start)
        weakref.finalize(owner, self._forget, region)
        return torch.frombuffer(owner, dtype=dtype).view(shape)

    def copy(self, tensor: torch.Tensor) -> torch.Tensor:
        """A copy that can only be read."""
        made = self.empty(tuple(tensor.shape), tensor.dtype)
        made.copy_(tensor)
        if tensor.numel():
            self.region_at(made.data_ptr()).protect(writable=False)
        return made

    def region_at(self, address: int) -> Region:
        """The region whose block holds an address; AssertionError if there is none."""
        for region in self._regions.values():
            if region.start <= address < region.end:
                return region
        raise AssertionError(f"{address:#x} is not in guarded memory")

    def check(self) -> None:
        """Raise AssertionError if anything was written beside a block."""
        for region in list(self._regions.values()):
            region.check()

    def _forget(self, region: Region) -> None:
        del self._regions[region.start]
        region.unmap()


@contextmanager
def allocating(guards: Guards):
    """Within it, what Python code allocates by torch's functions is guarded."""

    def empty(*shape, dtype, device="cpu"):
        assert str(device) == "cpu"
        return guards.empty(_flat(shape), dtype)

    def zeros(*shape, dtype, device):
        return empty(*shape, dtype=dtype, device=device).zero_()

    def empty_like(tensor):
        return guards.empty(tuple(tensor.shape), tensor.dtype)

    def new_empty(tensor, *shape, dtype=None):
        return guards.empty(_flat(shape), dtype or tensor.dtype)

    def new_zeros(tensor, *shape, dtype=None):
        return new_empty(tensor, *shape, dtype=dtype).zero_()

    def widened(tensor):
        made = tensor
        if tensor.dtype is not torch.float32:
            made = guards.empty(tuple(tensor.shape), torch.float32)
            made.copy_(tensor)
        return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "float", widened)
        for function in (empty, zeros, empty_like):
            patch.setattr(torch, function.__name__, function)
        for method in (new_empty, new_zeros):
            patch.setattr(torch.Tensor, method.__name__, method)
        yield


def _flat(shape) -> tuple[int, ...]:
    return tuple(shape[0]) if len(shape) == 1 and not isinstance(shape[0], int) else tuple(shape)

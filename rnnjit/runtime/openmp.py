"""Running kernels on several threads: torch's own OpenMP threads.

A second thread pool beside torch's would fight it for the cores, since OpenMP threads spin for a
while after work. So a kernel's team is made by the OpenMP runtime that torch loaded. All threads of
a team exist before any of them starts, so that they may wait for each other.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch


class OpenMP:
    """The functions of the OpenMP runtime in this process.

    Attributes:
        symbols: addresses of what kernels call, by name.
    """

    def __init__(self, process: Any) -> None:
        names = ("omp_get_thread_num", "omp_get_num_threads")
        self.symbols = {name: _address(getattr(process, name)) for name in names}
        self.parallel = process.GOMP_parallel
        self.parallel.restype = None
        self.parallel.argtypes = (
            ctypes.c_void_p,
            ctypes.c_void_p,
            ctypes.c_uint,
            ctypes.c_uint,
        )


@cache
def openmp() -> OpenMP | None:
    """The process's OpenMP runtime (GNU's, or one with GNU's interface), or None."""
    try:
        return OpenMP(ctypes.CDLL(None))
    except (AttributeError, OSError, TypeError):
        return None


class ForkGuard:
    """Knows whether this process was forked, after which no OpenMP team can be made."""

    def __init__(self) -> None:
        self.forked = False
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._mark)

    def _mark(self) -> None:
        self.forked = True


FORK = ForkGuard()


def most_threads(wanted: int) -> int:
    """How many threads a kernel may use, of those wanted."""
    return 1 if no_team() else wanted


def no_team() -> str:
    """Why kernels run on one thread whatever torch's number of threads is, or "" if not."""
    if FORK.forked:
        return "this process was forked, and has no OpenMP threads that survive that"
    if openmp() is None:
        return "the OpenMP runtime of this PyTorch lacks GNU's interface (GOMP_parallel)"
    return ""


@contextmanager
def one_thread() -> Iterator[None]:
    """Have torch's own operators run on the calling thread.

    In a forked process they would wait for ever for threads that only its parent has.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _address(function: Any) -> int:
    return int(ctypes.cast(function, ctypes.c_void_p).value or 0)

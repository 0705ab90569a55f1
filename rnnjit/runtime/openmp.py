"""Runs kernels on torch's own OpenMP threads.

OpenMP threads spin for a while after their work, so a second thread pool would compete with torch's
for the cores. Kernels therefore use a thread team of the OpenMP runtime that torch loaded. All
threads of a team exist before any of them starts, so they can synchronise with each other.
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
        symbols: addresses of the functions that kernels call, by name.
        parallel: `GOMP_parallel(function, argument, threads, flags)`, which runs a team.
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
    """Detects whether this process is a forked child, which cannot create an OpenMP team.

    Attributes:
        forked: whether it is.
    """

    def __init__(self) -> None:
        self.forked = False
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._mark)

    def _mark(self) -> None:
        self.forked = True


FORK = ForkGuard()


def most_threads(wanted: int) -> int:
    """The number of threads that a kernel may use, at most `wanted`."""
    return 1 if no_team() else wanted


def no_team() -> str:
    """Why kernels run on one thread regardless of torch's thread count, or "" if they need not."""
    if FORK.forked:
        return "this process was forked, and OpenMP threads do not survive a fork"
    if openmp() is None:
        return "the OpenMP runtime of this PyTorch lacks GNU's interface (GOMP_parallel)"
    return ""


@contextmanager
def one_thread() -> Iterator[None]:
    """A context in which torch's own operators run on the calling thread only.

    In a forked child they would wait forever for threads that exist only in the parent.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _address(function: Any) -> int:
    return int(ctypes.cast(function, ctypes.c_void_p).value or 0)

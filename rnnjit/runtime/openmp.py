"""Runs kernels on torch's own OpenMP threads.

OpenMP threads spin for a while after their work, so a second thread pool would compete with torch's
for the cores. Kernels therefore use a thread team of the OpenMP runtime that torch loaded. All
threads of a team exist before any of them starts, so they can synchronise with each other.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
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


class _Calling(threading.local):
    """What is known of the calling thread.

    Attributes:
        inside: whether it is in a `one_thread` context.
        settled: whether its thread count is its own: it was there when no thread was inside.
    """

    inside = False
    settled = False


class _OneThread:
    """The state of `one_thread`, which any number of threads may be inside of.

    Torch has a thread count for each thread, and a new thread takes over the one that was set last,
    by whichever thread. So each thread has its own count back when it leaves, and one that began
    while another was inside, and took over that one's 1, has the count that the first came with.
    """

    def __init__(self) -> None:
        self._calling = _Calling()
        self._lock = threading.Lock()
        self._inside, self._usual = 0, 1
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._after_fork)

    def wanted(self) -> bool:
        """Whether the calling thread is outside, and has more threads or should have."""
        calling = self._calling
        if calling.inside:
            return False
        with self._lock:
            more = torch.get_num_threads() > 1
            calling.settled = calling.settled or not self._inside
        return more or not calling.settled

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """The context."""
        calling = self._calling
        if calling.inside:
            yield
            return
        with self._lock:
            before = torch.get_num_threads()
            if not self._inside:
                self._usual, calling.settled = before, True
            elif not calling.settled:
                before, calling.settled = before if before > 1 else self._usual, True
            self._inside += 1
            calling.inside = True
            torch.set_num_threads(1)
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1
                calling.inside = False
                torch.set_num_threads(before)

    def _after_fork(self) -> None:
        """Forget the threads that the child does not have, one of which may have held the lock."""
        alone = int(self._calling.inside)
        others, self._inside, self._lock = self._inside - alone, alone, threading.Lock()
        self._calling.settled = True
        if others and not alone:
            torch.set_num_threads(torch.get_num_threads())  # new threads take it over


_ONE_THREAD = _OneThread()


def one_thread() -> AbstractContextManager[None]:
    """A context in which torch's own operators run on the calling thread only.

    In a forked child they would wait forever for threads that exist only in the parent. Contexts
    may be nested, and threads may be inside at the same time; each has its own thread count back
    when it leaves.
    """
    return _ONE_THREAD()


def needs_one_thread() -> bool:
    """Whether the calling thread of a forked child has to enter `one_thread`, and is not inside."""
    return _ONE_THREAD.wanted()


def _address(function: Any) -> int:
    return int(ctypes.cast(function, ctypes.c_void_p).value or 0)

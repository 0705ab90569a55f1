"""Computes values once per process, such as loaded kernels; safe for threads, signals and forks.

Two threads must not run a compiler at the same time, and a compilation must not be interrupted:
KeyboardInterrupt inside a compiler leaves locks held and modules half imported. A child forked
during a compilation inherits the held locks, but not the thread that would release them.
"""

from __future__ import annotations

import os
import threading
from _thread import interrupt_main
from collections import deque
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from functools import update_wrapper
from importlib import import_module
from threading import Lock, RLock, Thread, Timer, get_ident
from types import ModuleType, TracebackType
from typing import Any, Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")
#: Seconds after a fork at which a Ctrl-C that arrived during the wait is raised.
_LATER = 0.02
#: Bytes of the stack of a thread of our own. Compilers recurse: a main thread usually has half as
#: much. The system provides a page when it is first used.
_STACK = 16 << 20


class Compiling:
    """The process-wide lock for compilations; a context manager for the thread that compiles.

    `os.fork` waits until it is free.

    Attributes:
        lock: the lock.
    """

    def __init__(self) -> None:
        self.lock = RLock()
        self._owner: int | None = None
        self._depth = 0
        self._interrupted = False
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(
                before=self._wait, after_in_parent=self._let_go, after_in_child=self._renew
            )

    def __enter__(self) -> None:
        self.lock.acquire()
        self._owner = get_ident()
        self._depth += 1

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._depth -= 1
        if not self._depth:
            self._owner = None
        self.lock.release()

    @property
    def by_this_thread(self) -> bool:
        """Whether the calling thread holds the lock."""
        return self._owner == get_ident()

    def _wait(self) -> None:
        """Before a fork: acquire the lock; a Ctrl-C during the wait is raised after the fork."""
        while True:
            try:
                self.lock.acquire()
            except KeyboardInterrupt:
                self._interrupted = True
            else:
                return

    def _let_go(self) -> None:
        self.lock.release()
        if self._interrupted:
            self._interrupted = False
            # Delayed, since Python discards exceptions raised inside a fork handler.
            late = Timer(_LATER, interrupt_main)
            late.daemon = True
            late.start()

    def _renew(self) -> None:
        self.lock, self._owner, self._depth = RLock(), None, 0


COMPILING = Compiling()
#: What `once_compiled` postponed.
_POSTPONED: deque[Callable[[], None]] = deque()


def once_compiled(action: Callable[[], None]) -> None:
    """Call a function; on a thread that compiles, later, where the result is kept.

    What the function raises then reaches a caller that waits for a result, which the next call
    gets. This is for warnings, which users may turn into errors.
    """
    if COMPILING.by_this_thread:
        _POSTPONED.append(action)
    else:
        action()


def _catch_up() -> None:
    while True:
        try:
            action = _POSTPONED.popleft()
        except IndexError:
            return
        action()


class _Start:
    """Starts threads with a stack of `_STACK` bytes.

    A thread gets the size that the process has at that moment, which is the user's to set: it is
    changed for as long as a thread takes to start, by one thread at a time, and what the user sets
    meanwhile is kept.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._renew)

    def with_stack(self, thread: Thread) -> None:
        """Start a thread.

        Raises:
            RuntimeError: it cannot be started.
        """
        with self._lock:
            try:
                usual = threading.stack_size()
                threading.stack_size(max(usual, _STACK))
            except (RuntimeError, ValueError):  # this platform, or its limits, do not allow it
                thread.start()
                return
            try:
                thread.start()
            finally:
                found = threading.stack_size(usual)
                if found != max(usual, _STACK):
                    threading.stack_size(found)

    def _renew(self) -> None:
        self._lock = Lock()


_START = _Start()


class CompileOnce(Generic[K, V]):
    """A decorator that calls a function once for each argument and caches the result.

    The function runs on a separate thread, where no signal handler runs, and callers wait for it.
    Ctrl-C ends the wait but not the computation, whose result the next call returns. The process
    does not exit before the computation ends. If the function raises, the next call tries again.

    Attributes:
        made: the results, by argument.

    Example:
        >>> @CompileOnce
        ... def doubled(x: int) -> int:
        ...     return 2 * x
        >>> doubled(2)
        4
    """

    def __init__(self, make: Callable[[K], V]) -> None:
        self._make, self._name = make, getattr(make, "__name__", "")
        self.made: dict[K, V] = {}
        self._pending: dict[K, Future[None]] = {}
        self._lock = Lock()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._renew)
        update_wrapper(self, make)

    def __call__(self, key: K) -> V:
        """The result for an argument.

        Raises:
            Exception: the error of the function.
        """
        if key not in self.made:
            if COMPILING.by_this_thread:
                self._fill(key)
            else:
                _wait_for(self._begun(key))
                _catch_up()
        return self.made[key]

    def _begun(self, key: K) -> Future[None]:
        """The pending computation for a key, started if necessary; all callers share it."""
        with self._lock:
            pending = self._pending.get(key)
            if pending is None or pending.done():
                pending = self._pending[key] = apart(self._fill, key, name=self._name)
        return pending

    def _fill(self, key: K) -> None:
        with COMPILING:
            if key not in self.made:
                self.made[key] = self._make(key)

    def _renew(self) -> None:
        self._pending, self._lock = {}, Lock()


@CompileOnce
def imported(name: str) -> ModuleType:
    """Import a slow module as a compilation: a fork during the import would leave locks held."""
    return import_module(name)


def apart(function: Callable[..., V], *args: Any, name: str = "") -> Future[V]:
    """Call a function on a new non-daemon thread, so that the process waits for it before it exits.

    The thread is called "rnnjit: NAME". This is not an executor, since an executor refuses work
    after the main thread has ended, even if other threads still run. The thread has a stack large
    enough for a compiler, whatever `threading.stack_size` says. If no thread can be started, the
    function runs on the calling thread.
    """
    future: Future[V] = Future()

    def run() -> None:
        try:
            future.set_result(function(*args))
        except BaseException as error:  # noqa: BLE001 - the waiting caller re-raises it
            future.set_exception(error)

    name = f"rnnjit: {name or getattr(function, '__name__', '')}"
    thread = Thread(target=run, name=name, daemon=False)  # else inherited from a daemon thread
    try:
        _START.with_stack(thread)
    except RuntimeError:
        run()
    return future


def _wait_for(future: Future[None]) -> None:
    """Wait for a result; mark an exception of a signal handler, which is not its failure."""
    try:
        future.result()
    except Exception as error:
        if not future.done() or error is not future.exception():
            error.rnnjit_from_outside = True  # type: ignore[attr-defined]  # read by `dispatch.blame`
        raise

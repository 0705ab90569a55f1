"""What is made once in a process, such as loaded kernels: amid threads, signals and forks.

Compilers are neither to be run by two threads at once nor to be stopped half-way: an exception that
Ctrl-C raises inside one leaves locks held and modules half imported, and a child that is forked
meanwhile has the locks but not the thread that would let go of them.
"""

from __future__ import annotations

import os
from _thread import interrupt_main
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from functools import update_wrapper
from importlib import import_module
from threading import Lock, RLock, Thread, Timer, get_ident
from types import ModuleType, TracebackType
from typing import Any, Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")
#: Seconds after a fork until a Ctrl-C comes through that it made wait.
_LATER = 0.02


class Compiling:
    """Whether something is being compiled in this process: one thing at a time.

    As a context it is held by the thread that compiles. A fork waits until it is free.

    Attributes:
        lock: what is held.
    """

    def __init__(self) -> None:
        self.lock = RLock()
        self._owner: int | None = None
        self._interrupted = False
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(
                before=self._wait, after_in_parent=self._let_go, after_in_child=self._renew
            )

    def __enter__(self) -> None:
        self.lock.acquire()
        self._owner = get_ident()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._owner = None
        self.lock.release()

    @property
    def by_this_thread(self) -> bool:
        """Whether the calling thread is the one that compiles."""
        return self._owner == get_ident()

    def _wait(self) -> None:
        """Before a fork: Ctrl-C does not end this waiting, but is not lost either."""
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
            # Later, for what is raised in here would be lost.
            late = Timer(_LATER, interrupt_main)
            late.daemon = True
            late.start()

    def _renew(self) -> None:
        self.lock, self._owner = RLock(), None


COMPILING = Compiling()


class CompileOnce(Generic[K, V]):
    """A decorator: the function's result is made once for each argument, and then kept.

    It is made on a thread of its own, where no signal handler runs. Whoever calls waits for it;
    Ctrl-C ends the waiting but not the work, which the next call finds done. A process ends when
    the work does. A function that raises is called anew by the next call.

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
            Exception: whatever the function raises.
        """
        if key not in self.made:
            if COMPILING.by_this_thread:
                self._fill(key)
            else:
                _wait_for(self._begun(key))
        return self.made[key]

    def _begun(self, key: K) -> Future[None]:
        """The work on a result, begun if it was not: all that wait, wait for the same."""
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
    """A module that takes long to import: a fork amid an import would leave its lock held."""
    return import_module(name)


def apart(function: Callable[..., V], *args: Any, name: str = "") -> Future[V]:
    """Call a function on a thread of its own, which the process waits for when it ends.

    The thread is called "rnnjit: NAME". An executor would refuse where the main thread has ended
    already and others go on. Where no thread can be started the caller's own has to do it.
    """
    future: Future[V] = Future()

    def run() -> None:
        try:
            future.set_result(function(*args))
        except BaseException as error:  # noqa: BLE001 - whatever it is, it is raised by the waiting
            future.set_exception(error)

    name = f"rnnjit: {name or getattr(function, '__name__', '')}"
    try:
        Thread(target=run, name=name, daemon=False).start()  # a daemon's would be one, too
    except RuntimeError:
        run()
    return future


def _wait_for(future: Future[None]) -> None:
    """Wait, and mark what a signal handler raises meanwhile: it is no failure of what is made."""
    try:
        future.result()
    except Exception as error:
        if not future.done() or error is not future.exception():
            error.rnnjit_from_outside = True  # type: ignore[attr-defined]  # read by `dispatch.fallback`
        raise

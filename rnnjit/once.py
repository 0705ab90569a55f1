"""What is made once in a process, such as loaded kernels: amid threads, signals and forks.

Compilers are neither to be run by two threads at once nor to be stopped half-way: an exception that
Ctrl-C raises inside one leaves locks held and modules half imported, and a child that is forked
meanwhile has the locks but not the thread that would let go of them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from functools import update_wrapper
from threading import RLock, Thread
from typing import Any, Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Compiling:
    """Whether something is being compiled in this process: one thing at a time.

    A fork waits until it is done.

    Attributes:
        lock: held by the thread that compiles.
    """

    def __init__(self) -> None:
        self.lock = RLock()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(
                before=lambda: self.lock.acquire(),
                after_in_parent=lambda: self.lock.release(),
                after_in_child=self._renew,
            )

    def _renew(self) -> None:
        self.lock = RLock()


COMPILING = Compiling()


class Once(Generic[K, V]):
    """A decorator: the function's result is made once for each argument, and then kept.

    It is made on a thread of its own, where no signal handler runs. Whoever calls waits for it;
    Ctrl-C ends the waiting but not the work, which the next call finds done. A process ends when
    the work does. A function that raises is called anew by the next call.

    Attributes:
        made: the results, by argument.

    Example:
        >>> @Once
        ... def doubled(x: int) -> int:
        ...     return 2 * x
        >>> doubled(2)
        4
    """

    def __init__(self, make: Callable[[K], V]) -> None:
        self._make = make
        self.made: dict[K, V] = {}
        update_wrapper(self, make)

    def __call__(self, key: K) -> V:
        """The result for an argument.

        Raises:
            Exception: whatever the function raises.
        """
        if key not in self.made:
            apart(self._fill, key).result()
        return self.made[key]

    def _fill(self, key: K) -> None:
        with COMPILING.lock:
            if key not in self.made:
                self.made[key] = self._make(key)


def apart(function: Callable[..., V], *args: Any) -> Future[V]:
    """Call a function on a thread of its own, which the process waits for when it ends.

    An executor would refuse where the main thread has ended already and others go on.
    """
    future: Future[V] = Future()

    def run() -> None:
        try:
            future.set_result(function(*args))
        except BaseException as error:  # noqa: BLE001 - whatever it is, it is raised by the waiting
            future.set_exception(error)

    name = f"rnnjit: {getattr(function, '__name__', 'work')}"
    Thread(target=run, name=name, daemon=False).start()  # a daemon's would be one, too
    return future

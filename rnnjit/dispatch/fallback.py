"""What is done where a backend raises: under `auto` the next one that accepts the call answers.

A backend that has raised, and whose work another one then did, is left out by `auto` for the rest
of the process, in every module: a toolchain that is gone is gone for all. If every backend raises,
the last error comes through and none is left out: the cause is in the call then. A backend that is
asked for by name is never replaced, and so raises its own error.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from itertools import count
from typing import TypeVar

import torch

from rnnjit.backend import Backend
from rnnjit.errors import BackendError, RNNJitWarning, described

Found = TypeVar("Found")


class Generation:
    """Counts what makes earlier choices of a backend wrong; who remembers a choice compares it.

    Attributes:
        now: changes with every measurement that was made, and every backend that has failed.
    """

    def __init__(self) -> None:
        self._numbers = count()
        self.now = next(self._numbers)

    def advance(self) -> None:
        """Choices are to be made anew from now on."""
        self.now = next(self._numbers)


GENERATION = Generation()


class Failures:
    """The backends that have failed in this process."""

    def __init__(self) -> None:
        # By identity, for what equality a backend has is its own affair; each is kept, lest its
        # identity be given to another.
        self._found: dict[int, tuple[Backend, str]] = {}

    def reason(self, backend: Backend) -> str:
        """Why `auto` leaves a backend out, or "" if it has not failed."""
        found = self._found.get(id(backend))
        return found[1] if found is not None else ""

    def note(self, backend: Backend, error: Exception, instead: str) -> None:
        """Leave a backend out from now on; warns, the first time.

        Args:
            backend: what raised.
            error: what it raised.
            instead: what did its work, in words.
        """
        if self.reason(backend):
            return
        raised = described(error)
        self._found[id(backend)] = backend, f"it raised {raised}"
        GENERATION.advance()
        warnings.warn(
            f"backend {backend.name!r} raised {raised}; {instead} did its work. 'auto' leaves it "
            f"out from now on: use backend={backend.name!r} to see the error where it comes from",
            RNNJitWarning,
            stacklevel=2,
        )


FAILURES = Failures()


def replaceable(error: Exception) -> bool:
    """Whether another backend may do better.

    Not where the machine's memory is at its end, nor where the inputs are no longer what they were,
    nor where a signal handler of the caller's raised, for instance a time limit's.
    """
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return False
    if isinstance(error, BackendError) and error.inputs_changed:
        return False
    if getattr(error, "rnnjit_from_outside", False):  # see `rnnjit.runtime.compile_once`
        return False
    return "can't allocate memory" not in str(error)  # torch's own words, in a RuntimeError


class Fallback:
    """The one policy for errors of backends, for calls of one kind.

    Args:
        others: the backends that `auto` may take instead, in its order; None where a backend was
            asked for by name, or where torch's own operators run: errors then are raised.
    """

    def __init__(self, others: Callable[[], Iterator[Backend]] | None = None) -> None:
        self._others = others

    @property
    def active(self) -> bool:
        """Whether another backend may answer at all."""
        return self._others is not None

    def run(self, backend: Backend, work: Callable[[Backend], Found]) -> Found:
        """What `work` returns for `backend`, or for the first of the others that does not raise.

        Raises:
            Exception: what the last backend raised.
        """
        if self._others is None:
            return work(backend)
        try:
            return work(backend)
        except Exception as error:  # noqa: BLE001 - a backend may fail in any way
            return self.instead(backend, error, work)

    def instead(
        self, backend: Backend, error: Exception, work: Callable[[Backend], Found]
    ) -> Found:
        """Have other backends do what one has failed to do.

        Args:
            backend: what raised.
            error: what it raised; it is being handled.
            work: does the work by another backend.

        Raises:
            Exception: what the last backend raised, or `error` if there is no other.
        """
        failed = [(backend, error)]
        for other in self._others() if self._others else ():
            if other is backend:
                continue
            if not replaceable(failed[-1][1]):
                break
            try:
                found = work(other)
            except Exception as another:  # noqa: BLE001 - a backend may fail in any way
                failed.append((other, another))
                continue
            for culprit, cause in failed:
                FAILURES.note(culprit, cause, f"backend {other.name!r}")
            return found
        raise failed[-1][1]

    def or_else(
        self, backend: Backend, work: Callable[[], Found], other: Callable[[], Found], instead: str
    ) -> Found:
        """What `work` returns, or `other` where it raises: for work that no other backend can do.

        A backward pass is of this kind: what a forward pass saved is its own backend's.

        Args:
            backend: whose work it is.
            work: does it.
            other: does it in another way.
            instead: that way, in words.

        Raises:
            Exception: what `work` raised, if nothing may replace it, or what `other` raised.
        """
        if self._others is None:
            return work()
        try:
            return work()
        except Exception as error:
            if not replaceable(error):
                raise
            found = other()
            FAILURES.note(backend, error, instead)
            return found


#: Where a backend's error is raised as it is.
RAISE = Fallback()

"""Fallback on errors: if a backend raises, `auto` runs the call on the next one that accepts it.

If another backend succeeds, `auto` no longer uses the one that raised, in any module of this
process: the usual cause is a missing toolchain, which affects all modules. If every backend raises,
the last error propagates and all stay in use, since then the cause is the call. A backend that the
user named is never replaced; its error propagates.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from itertools import count
from typing import TypeVar

import torch

from rnnjit.backend import Backend
from rnnjit.dispatch.blame import blamed
from rnnjit.errors import BackendError, FreedInputError, RNNJitWarning, described

Found = TypeVar("Found")


class Generation:
    """A counter of the events that invalidate cached choices of a backend.

    A cache stores the value with its choices and drops them when the value has changed.

    Attributes:
        now: the current value; every measurement by `tune` and every failed backend changes it.
    """

    def __init__(self) -> None:
        self._numbers = count()
        self.now = next(self._numbers)

    def advance(self) -> None:
        """Invalidate all cached choices."""
        self.now = next(self._numbers)


GENERATION = Generation()


class Failures:
    """The backends that have failed in this process."""

    def __init__(self) -> None:
        # Keyed by id, since a backend may define its own equality. The backend is stored as well:
        # its id must not be reused for another object.
        self._found: dict[int, tuple[Backend, str]] = {}

    def reason(self, backend: Backend) -> str:
        """Why `auto` no longer uses a backend, or "" if it has not failed."""
        found = self._found.get(id(backend))
        return found[1] if found is not None else ""

    def note(self, backend: Backend, error: Exception, instead: str) -> None:
        """Exclude a backend from `auto` from now on, with an `RNNJitWarning` the first time.

        Args:
            backend: the backend that raised.
            error: the exception.
            instead: what ran the call instead, for the warning.
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
    """Whether another backend may succeed after this error.

    Only if it is the backend's own, see `blame`. Not after running out of memory, or if the inputs
    were overwritten or have no memory.
    """
    if not blamed(error):
        return False
    if isinstance(error, (MemoryError, torch.OutOfMemoryError, FreedInputError)):
        return False
    if isinstance(error, BackendError) and error.inputs_changed:
        return False
    return "can't allocate memory" not in str(error)  # torch's message, in a RuntimeError


class Fallback:
    """The policy for errors of a backend, for calls of one kind.

    Args:
        others: gives the backends that `auto` may use instead, in its order. None if the user named
            a backend, or if torch's own operators run: errors then propagate.
    """

    def __init__(self, others: Callable[[], Iterator[Backend]] | None = None) -> None:
        self._others = others

    @property
    def active(self) -> bool:
        """Whether another backend may take over."""
        return self._others is not None

    def run(self, backend: Backend, work: Callable[[Backend], Found]) -> Found:
        """Return `work(backend)`, or that of the first other backend that does not raise.

        Raises:
            Exception: the error of the last backend.
        """
        if self._others is None:
            return work(backend)
        try:
            return work(backend)
        except Exception as error:
            if not blamed(error):
                raise
            return self.instead(backend, error, work)

    def instead(
        self, backend: Backend, error: Exception, work: Callable[[Backend], Found]
    ) -> Found:
        """Run the work on other backends after one has raised.

        Args:
            backend: the backend that raised.
            error: its exception, which is being handled.
            work: runs the work on a backend.

        Raises:
            Exception: the error of the last backend, or `error` if there is no other.
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
        """Return `work()`, or `other()` if it raises: for work that no other backend can take over.

        The backward pass is an example: only the backend of the forward pass can read the tensors
        that it saved.

        Args:
            backend: the backend that `work` uses.
            work: the computation.
            other: the same computation by other means.
            instead: what `other` uses, for the warning.

        Raises:
            Exception: the error of `work` if it is not `replaceable`, or that of `other`.
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


#: The policy without a fallback: errors propagate.
RAISE = Fallback()

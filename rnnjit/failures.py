"""Backends that have failed: they raised, and another one then did the same work.

`auto` leaves them out for the rest of the process, in every module: a toolchain that is gone is
gone for all. A backend that is asked for by name is never left out, and so raises its error.
"""

from __future__ import annotations

import warnings

import torch

from rnnjit.backend import Backend
from rnnjit.errors import BackendError, RNNJitWarning, described
from rnnjit.generation import GENERATION


class Failures:
    """What has failed in this process."""

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
    if getattr(error, "rnnjit_from_outside", False):  # see `rnnjit.once`
        return False
    return "can't allocate memory" not in str(error)  # torch's own words, in a RuntimeError

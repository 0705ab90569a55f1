"""The exceptions and warnings of rnnjit's own."""

from __future__ import annotations

from collections.abc import Sequence


class UnsupportedError(RuntimeError):
    """A backend was asked for by name and declines; it is never replaced behind the caller's back.

    Attributes:
        backend: name of the backend that declined.
        reasons: what `Backend.why_not` gave, each a sentence a person can act on.
    """

    def __init__(self, backend: str, reasons: Sequence[str]) -> None:
        self.backend = backend
        self.reasons = tuple(reasons)
        super().__init__(backend, self.reasons)

    def __str__(self) -> str:
        return (
            f"backend {self.backend!r} cannot run this call: {'; '.join(self.reasons)}. "
            "Use backend='auto' to let another backend answer."
        )


class RNNJitWarning(UserWarning):
    """Something was left as it was, or done in a slower way, that the caller may want to know."""


def described(error: Exception) -> str:
    """An exception in a few words."""
    return f"{type(error).__name__}: {error}"

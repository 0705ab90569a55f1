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


class BackendError(RuntimeError):
    """A backend has broken its contract: what it returned, or did, is not what was asked for.

    Attributes:
        backend: its name.
        what: which result, or what else of it.
        expected: what the contract says.
        got: what came.
        inputs_changed: whether it wrote to its inputs, so that no other backend can do better.
    """

    def __init__(
        self, backend: str, what: str, expected: str, got: str, inputs_changed: bool = False
    ) -> None:
        self.backend, self.what, self.expected, self.got = backend, what, expected, got
        self.inputs_changed = inputs_changed
        super().__init__(backend, what, expected, got, inputs_changed)

    def __str__(self) -> str:
        return (
            f"backend {self.backend!r} broke its contract: {self.what}: expected {self.expected}, "
            f"got {self.got}. Report it to the backend's author; `rnnjit check {self.backend}` or "
            "rnnjit.testing.run(backend) shows more. Another backend can be asked for by name."
        )


class RNNJitWarning(UserWarning):
    """Something was left as it was, or done in a slower way, that the caller may want to know."""


def described(error: Exception) -> str:
    """An exception in a few words."""
    return f"{type(error).__name__}: {error}"

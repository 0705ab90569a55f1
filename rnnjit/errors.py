"""The exceptions and warnings that rnnjit defines."""

from __future__ import annotations

from collections.abc import Sequence


class UnsupportedError(RuntimeError):
    """The backend that the caller named declines the call; rnnjit never replaces it silently.

    Attributes:
        backend: name of the backend that declined.
        reasons: why it declined (`Backend.why_not`), each a sentence that a person can act on.
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
    """A backend has broken its contract, by what it returned or by what it did.

    Attributes:
        backend: its name.
        what: the result or the behaviour that is wrong.
        expected: what the contract requires.
        got: what the backend returned or did instead.
        inputs_changed: whether it wrote to its inputs, so that no other backend can take over.
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
            "rnnjit.testing.run(backend) shows more. To use another backend, pass its name."
        )


class FreedInputError(RuntimeError):
    """A tensor of a call has elements but no memory: its storage was resized to 0 bytes.

    Sharding and offloading do this. No backend can run such a call, and so none takes over.
    """

    def __init__(self, what: str) -> None:
        super().__init__(
            f"{what} has no memory: its storage was resized to 0 bytes; resize it and fill it "
            "before the call"
        )


class CellError(TypeError):
    """A step of a user's cell is not of the form that rnnjit compiles.

    Attributes:
        step: the step, such as "LeakyRNN.forward".
        where: file and line of the user's code, such as "cells.py:12".
        operation: what stands there, such as "torch.cumsum".
        why: why it is not compiled.
        remedy: what to do.
    """

    def __init__(self, step: str, where: str, operation: str, why: str, remedy: str) -> None:
        self.step, self.where, self.operation = step, where, operation
        self.why, self.remedy = why, remedy
        super().__init__(step, where, operation, why, remedy)

    def __str__(self) -> str:
        return f"{self.step}, {self.where}: {self.operation} {self.why}. {self.remedy}."


class RNNJitWarning(UserWarning):
    """rnnjit left something unchanged, or took a slower path; the caller may want to know."""


def described(error: Exception) -> str:
    """Format an exception as its type and message."""
    return f"{type(error).__name__}: {error}"

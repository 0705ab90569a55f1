"""A bounded memory of answers, which `GENERATION` empties."""

from __future__ import annotations

from typing import Generic, TypeVar

from rnnjit.dispatch.fallback import GENERATION

K = TypeVar("K")
V = TypeVar("V")


class Memory(Generic[K, V]):
    """Answers by what they depend on, until a measurement or a failed backend changes them.

    Any number of threads may use it. A thread stores its answer in the dictionary that it asked for
    before it found the answer, so that an outdated one is never read.

    Args:
        most: how many answers it keeps; when there are more, it begins anew.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._held: tuple[int, dict[K, V]] = (GENERATION.now, {})

    def answers(self) -> dict[K, V]:
        """The answers that hold now, to look one up and to add one."""
        now = GENERATION.now
        generation, answers = self._held
        if generation != now or len(answers) >= self._most:
            answers = {}
            self._held = now, answers
        return answers

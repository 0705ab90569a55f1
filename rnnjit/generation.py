"""Counts what happens in this process that makes earlier choices of a backend wrong."""

from __future__ import annotations

from itertools import count


class Generation:
    """A number that whoever remembers a choice compares.

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

"""Parses arguments, and reports invalid ones in one line on stderr."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, NoReturn

LARGEST = 2**31 - 1
"""The largest size or count; sizes that fit into memory are smaller."""


class UsageError(Exception):
    """The arguments cannot be carried out; the message says what the user can change."""


class Parser(argparse.ArgumentParser):
    """An argument parser that reports errors in one line, and accepts no abbreviations."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """Print one line and exit with status 2."""
        self.exit(2, f"{self.prog}: error: {one_line(message)} (see {self.prog} --help)\n")


Commands = argparse._SubParsersAction
"""The type that `add_subparsers` returns; argparse has no public name for it."""


def one_line(text: object) -> str:
    """Put a text on a single line."""
    return " ".join(str(text).split())


def first_line(error: Exception) -> str:
    """The first line of an exception's message; PyTorch appends C++ frames to some messages."""
    lines = str(error).splitlines() or [type(error).__name__]
    return lines[0]


def comma_separated(text: str) -> list[str]:
    """Parse names separated by commas."""
    return [name for name in text.split(",") if name]


def positive(text: str) -> int:
    """Parse a whole number from 1 to `LARGEST`."""
    try:
        number = int(text)
    except ValueError:
        number = 0
    if not 1 <= number <= LARGEST:
        raise argparse.ArgumentTypeError(
            f"expected a whole number from 1 to {LARGEST}, got {text!r}"
        )
    return number


def seed(text: str) -> int:
    """Parse a whole number from 0 to `LARGEST`."""
    if not text.isdecimal() or int(text) > LARGEST:
        raise argparse.ArgumentTypeError(
            f"expected a whole number from 0 to {LARGEST}, got {text!r}"
        )
    return int(text)


def probability(text: str) -> float:
    """Parse a number between 0 and 1."""
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0.0 <= number <= 1.0:
        raise argparse.ArgumentTypeError(f"expected a number between 0 and 1, got {text!r}")
    return number


def output_file(text: str) -> str:
    """Check before the work starts that a file can be written; "-" is standard output."""
    path = Path(text)
    if text != "-" and path.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is a folder, not a file")
    if text != "-" and not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {str(path.parent)!r} to write to")
    return text

"""Parsing of arguments: one clear line on stderr for those that make no sense."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, NoReturn

LARGEST = 2**31 - 1
"""No size or count may be larger; what fits into memory is smaller still."""


class UsageError(Exception):
    """The arguments ask for what cannot be done; the message is one that the user can act on."""


class Parser(argparse.ArgumentParser):
    """An argument parser that says in one line what is wrong, and accepts no abbreviations."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """Print one line and exit with status 2."""
        self.exit(2, f"{self.prog}: error: {one_line(message)} (see {self.prog} --help)\n")


Commands = argparse._SubParsersAction
"""What `add_subparsers` returns; argparse gives it no public name."""


def one_line(text: object) -> str:
    """Any text on a single line."""
    return " ".join(str(text).split())


def first_line(error: Exception) -> str:
    """An exception's message without the C++ frames that PyTorch adds to some."""
    lines = str(error).splitlines() or [type(error).__name__]
    return lines[0]


def positive(text: str) -> int:
    """A whole number from 1 to `LARGEST`."""
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
    """A whole number from 0 to `LARGEST`."""
    if not text.isdecimal() or int(text) > LARGEST:
        raise argparse.ArgumentTypeError(
            f"expected a whole number from 0 to {LARGEST}, got {text!r}"
        )
    return int(text)


def probability(text: str) -> float:
    """A number between 0 and 1."""
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0.0 <= number <= 1.0:
        raise argparse.ArgumentTypeError(f"expected a number between 0 and 1, got {text!r}")
    return number


def output_file(text: str) -> str:
    """A file that can be written, or "-" for standard output: found out before hours of work."""
    path = Path(text)
    if text != "-" and path.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is a folder, not a file")
    if text != "-" and not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {str(path.parent)!r} to write to")
    return text

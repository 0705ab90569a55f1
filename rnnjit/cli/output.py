"""Output of the commands: consoles, progress bars, JSON."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from rnnjit.cli.parser import UsageError

_WIDTH_OF_FILES = 120


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Raise it to `main`, which has an exit status for it."""
        raise BrokenPipeError


def console() -> Console:
    """A console on standard output; wide enough for the tables if it is not a terminal."""
    found = _Console(highlight=False)
    if not found.is_terminal and found.width < _WIDTH_OF_FILES:
        found.width = _WIDTH_OF_FILES
    return found


def progress() -> Progress:
    """A progress bar on standard error, if that is a terminal; it disappears when it is done."""
    errors = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=errors,
        transient=True,
        disable=not errors.is_terminal,
    )


def timed_progress() -> Progress:
    """A progress bar like `progress`, with the time left; it is drawn only on explicit refresh."""
    errors = Console(stderr=True)
    return Progress(
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
        console=errors,
        transient=True,
        auto_refresh=False,
        speed_estimate_period=600,
        disable=not errors.is_terminal,
    )


def say(command: str, line: str) -> None:
    """Write a status line of a command to standard error."""
    sys.stderr.write(f"rnnjit {command}: {line}\n")


def write_json(data: Any, file: str) -> None:
    """Write `data` as JSON to a file, or to standard output for "-".

    Raises:
        UsageError: the file cannot be written.
    """
    write_text(json.dumps(_strict(data), indent=2, allow_nan=False) + "\n", file)


def write_text(text: str, file: str) -> None:
    """Write text to a file, or to standard output for "-".

    Raises:
        UsageError: the file cannot be written.
    """
    if file == "-":
        sys.stdout.write(text)
        return
    try:
        Path(file).write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{file!r} cannot be written: {error.strerror}") from None


def _strict(data: Any) -> Any:
    """Convert NaN and infinities, which JSON does not have, to strings."""
    if isinstance(data, dict):
        return {key: _strict(value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [_strict(value) for value in data]
    if isinstance(data, float) and not math.isfinite(data):
        return str(data)
    return data

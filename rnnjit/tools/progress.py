"""Says what a tool does while it takes long: on stderr, or to the log of those who keep one."""

from __future__ import annotations

import logging
import sys
from types import TracebackType
from typing import TYPE_CHECKING

from rnnjit.backend import Backend
from rnnjit.dispatch.blame import from_outside
from rnnjit.spec import Problem, RNNSpec

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import TaskID

LOGGER = logging.getLogger("rnnjit")

LONG = 10.0
"""Seconds of compilation from which on a backend is left for the end, and announced."""


class Progress:
    """What a tool says while it works.

    On a terminal, a bar and the results so far; elsewhere, only a line before each long wait. If
    the logger `rnnjit` passes on INFO, it gets every line, and stderr none. If its own level is
    above INFO, nothing is said at all.

    Args:
        tool: what speaks, for the start of a line.
        option: what leaves a backend out, for the line before a long compilation.
    """

    def __init__(self, tool: str, option: str = "backends=") -> None:
        self._tool, self._option = tool, option
        self._announced: set[str] = set()
        self._bar: Bar | None = None
        self._task: TaskID | None = None
        self._logs = LOGGER.isEnabledFor(logging.INFO) and LOGGER.hasHandlers()
        self._silent = LOGGER.level > logging.INFO

    def __enter__(self) -> Progress:
        self._bar = None if self._silent else _bar()
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def expect(self, total: int) -> None:
        """Set the number of steps, those made included."""
        if self._bar is None:
            return
        if self._task is None:
            self._task = self._bar.add_task(self._tool, total=total)
        else:
            self._bar.update(self._task, total=total)

    def step(self, what: str = "") -> None:
        """One step is made, and `what` is next. It draws, and so belongs between two samples."""
        self._draw(1, what)

    def begin(self, backend: Backend, what: str, seconds: float) -> None:
        """Say that a backend is called for the first time; a line if it compiles for long.

        Args:
            backend: the backend.
            what: what is done with it.
            seconds: see `compile_seconds`.
        """
        self._draw(0, f"{what} {backend.name}")
        if seconds < LONG or backend.name in self._announced:
            return
        self._announced.add(backend.name)
        self._say(
            f"{backend.name} may compile for {_duration(seconds)} or longer; "
            f"{self._option} chooses what takes part",
            everywhere=True,
        )

    def found(self, line: str) -> None:
        """Say what was found so far."""
        self._say(line, everywhere=False)

    def _draw(self, steps: int, what: str) -> None:
        if self._bar is not None and self._task is not None:
            text = f"{self._tool}: {what}" if what else None
            self._bar.update(self._task, advance=steps, description=text, refresh=True)

    def _say(self, line: str, *, everywhere: bool) -> None:
        if self._logs:
            LOGGER.info("%s: %s", self._tool, line)
        elif self._silent:
            return
        elif self._bar is not None:
            self._bar.console.print(f"{self._tool}: {line}", markup=False, highlight=False)
        elif everywhere and sys.stderr is not None:
            sys.stderr.write(f"{self._tool}: {line}\n")
            sys.stderr.flush()


def compile_seconds(backend: Backend, spec: RNNSpec, problem: Problem) -> float:
    """How long a backend expects to compile for a call; 0 if it does not tell."""
    try:
        return float(backend.compile_seconds(spec, problem))
    except Exception as error:
        if from_outside(error):
            raise
        return 0.0


def _bar() -> Bar | None:
    """A bar on stderr that disappears when it is done; None if that is no terminal."""
    if sys.stderr is None or not sys.stderr.isatty():
        return None
    # Imported here, since rich takes longer to import than all of rnnjit.
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        return None
    # Drawn only where a tool asks for it: a thread that draws would disturb what is measured.
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        auto_refresh=False,
    )


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 60 else f"{seconds / 60:.0f} min"

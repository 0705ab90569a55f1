"""Runs a benchmark: finds the contestants, measures, and makes the report."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import rnnjit
from rnnjit.bench.contestants.base import Contestant
from rnnjit.bench.plan import Plan
from rnnjit.bench.records import Case, ContestantInfo, Machine, Report
from rnnjit.bench.runner import Progress, Runner
from rnnjit.errors import described
from rnnjit.tools.environment import environment


def info(contestant: Contestant) -> ContestantInfo:
    """Describe a contestant for a report, with the reason if it is absent here."""
    try:
        absent = contestant.absent()
        versions = {} if absent else contestant.versions()
    except Exception as error:  # noqa: BLE001 - a third party's package may fail in any way
        absent, versions = f"asked whether it is installed, it raised {described(error)}", {}
    return ContestantInfo(
        name=contestant.name,
        kind=contestant.kind,
        title=contestant.title,
        versions=versions,
        absent=absent,
    )


def present(contestants: Sequence[Contestant]) -> list[Contestant]:
    """The contestants that can run here."""
    return [each for each in contestants if not info(each).absent]


def run(
    preset: str,
    cases: Sequence[Case],
    contestants: Sequence[Contestant],
    plan: Plan,
    machine: Machine,
    progress: Progress = lambda what, seconds: None,
    command: str = "",
) -> Report:
    """Measure cases on all contestants that are not absent.

    Ctrl-C (KeyboardInterrupt) ends it; the report then holds the measurements so far.

    Args:
        preset: the name of the preset in the report.
        cases: the cases to measure.
        contestants: the contestants; absent ones are in the report, with the reason.
        plan: how to measure.
        machine: the machine.
        progress: called after every step.
        command: the command line to record in the report.
    """
    created = datetime.now().astimezone().isoformat(timespec="seconds")
    asked = tuple(map(info, contestants))
    runner, complete = Runner(present(contestants), plan, progress), True
    try:
        with runner:
            runner.measure(cases)
    except KeyboardInterrupt:
        complete = False
    found = environment().versions
    return Report(
        preset=preset,
        created=created,
        commit=commit(Path(rnnjit.__file__).parent),
        versions={name: version for name, version in found.items() if version is not None},
        machine=machine,
        contestants=asked,
        measurements=tuple(runner.measurements),
        complete=complete,
        command=command,
    )


def commit(package: Path) -> str:
    """The commit of the working tree that contains a package, "" if there is none.

    A "+" is appended if the tree has uncommitted changes.
    """

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(package), *arguments], capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py")  # fails inside a .venv
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return ""

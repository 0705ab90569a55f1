"""One run of a benchmark, from who is there to the report."""

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
    """What a report says of a contestant: also whether it can take part here."""
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
    """Those that can take part here."""
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

    Ctrl-C (KeyboardInterrupt) ends it: what was measured by then is in the report.

    Args:
        preset: the name that the report gets.
        cases: what to measure.
        contestants: who takes part; absent ones are in the report, with the reason.
        plan: how to measure.
        machine: where.
        progress: told of every step.
        command: that asked for it, for the report.
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
    """The commit of the working tree that a package is part of, "" if it is of none.

    A "+" behind it says that the tree was changed since.
    """

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(package), *arguments], capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py")  # a .venv may lie in somebody's tree
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return ""

"""`rnnjit check`: the conformance kit without pytest."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator

from rich.text import Text

from rnnjit import testing
from rnnjit.cli.output import console, progress
from rnnjit.cli.parser import Commands, Parser, UsageError
from rnnjit.dispatch.registry import resolve

#: Most cases that a line names; of more it says how many.
_NAMED = 3


def add(commands: Commands[Parser]) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "check",
        help="run the conformance kit on one backend",
        description="Compare one backend with eager PyTorch in every case of the conformance kit. "
        "The exit status is 1 if a check fails.",
    )
    parser.add_argument("name", metavar="NAME", help="an installed backend, see rnnjit info")
    extent = parser.add_mutually_exclusive_group()
    extent.add_argument("--quick", action="store_true", help="only the quick subset")
    extent.add_argument(
        "--full", action="store_true", help="every combination of a layer's options, too (minutes)"
    )
    parser.set_defaults(run=run)


def run(arguments: Namespace) -> int:
    """Run the kit; print every failure and a summary."""
    name: str = arguments.name
    try:
        backend = resolve(name)
    except ValueError as error:
        raise UsageError(str(error)) from None
    if backend is None:
        raise UsageError("'auto' is no backend but a choice among them: name one")
    missing = backend.missing()
    if missing:
        raise UsageError(f"backend {name!r} cannot run here: {'; '.join(missing)}")
    with progress() as bar:
        extent = {"quick": arguments.quick, "full": arguments.full}
        task = bar.add_task(f"checking {name}", total=testing.count(**extent))
        report = testing.run(backend, **extent, on_result=lambda result: bar.advance(task))
    _print(report)
    return 0 if report.ok else 1


def _print(report: testing.Report) -> None:
    out = console()
    for failure in report.failures:
        out.print(Text(f"FAILED {failure.id}", "bold red"))
        out.print(Text(f"  {failure.message}"))
    for cell, own in report.by_cell.items():
        for line in _declined(cell, own):
            out.print(Text(line))
    for cell, own in report.by_cell.items():
        out.print(Text(f"  {cell}: {_counts(own)}", "red" if own.failed else ""))
    summary = f"{report.backend}: {_counts(report)}"
    out.print(Text(summary, "bold red" if report.failed else "bold green"))


def _counts(report: testing.Report) -> str:
    return f"{report.passed} passed, {report.failed} failed, {report.declined} declined"


def _declined(cell: str, report: testing.Report) -> Iterator[str]:
    """A line for each of the reasons why cases of a cell were declined."""
    cases: dict[str, list[str]] = {}
    for result in report.results:
        if result.outcome == "declined" and result.case not in cases.setdefault(result.message, []):
            cases[result.message].append(result.case)
    for reasons, ids in cases.items():
        named = ", ".join(ids) if len(ids) <= _NAMED else f"{len(ids)} cases of {cell}"
        yield f"declined {named}: {reasons}"

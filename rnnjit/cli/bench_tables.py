"""Prints the tables of a benchmark report, and the changes since another report."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from rnnjit.bench.records import Report
from rnnjit.bench.report import findings, tables
from rnnjit.bench.report.regression import Change
from rnnjit.bench.report.results import Results, extras, shape, size, times

_STYLES = {"best": "bold green", "slow": "red", "wrong": "bold red", "failed": "bold red"}
_QUIET = ("declined", "none")


def print_report(out: Console, report: Report) -> None:
    """Print all tables and means, and which contestants have no time or are absent, and why."""
    results = Results(report)
    means = {str(part): found for part, found in findings.means(results).items()}
    for table in (*tables.shape_tables(results), *tables.sweep_tables(results)):
        out.print(Text(table.title, "bold"))
        out.print(_table(table, means.get(table.title, [])))
    for entry in findings.untimed(results):
        count = len(entry.cases)
        cases = tables.case_words(entry.cases[0]) if count == 1 else f"{count} cases"
        line = f"{entry.contestant.name} {_SAYS[entry.verdict]} {cases}: {entry.reason}"
        out.print(Text(line, _STYLES.get(entry.verdict, "")))
    for contestant in report.contestants:
        if contestant.absent:
            out.print(Text(f"{contestant.name} is absent: {contestant.absent}"))
    out.print(
        f"Times as fast as {_base(results)}, and below it the median of interleaved rounds. "
        "Only right results have a time."
    )
    for summary in (_means(results), _memory(results)):
        if summary is not None:
            out.print(summary)
    if not report.complete:
        out.print(Text("Interrupted: this is what was measured.", "yellow"))


def _base(results: Results) -> str:
    """The baseline in words: in int8 it is not eager in the dtype of the cases."""
    if results.baseline == "eager":
        return "eager PyTorch"
    return f"{results.baseline} ({results.named(results.baseline).title})"


_SAYS = {"wrong": "is wrong in", "failed": "failed in", "declined": "declines", "absent": "lacks"}


def _table(table: tables.Table, means: Sequence[findings.Mean]) -> Table:
    found = Table()
    found.add_column(table.first)
    for contestant in table.contestants:
        found.add_column(contestant.name, justify="right")
    for row in table.rows:
        cells = [
            Text(cell.main, _style(cell.kind)).append(f"\n{cell.more}", "dim") for cell in row.cells
        ]
        found.add_row(f"{row.label}\n{row.more}".rstrip(), *cells)
    if means:
        by_name = {mean.contestant.name: mean for mean in means}
        found.add_section()
        found.add_row("geometric mean", *(_mean(by_name.get(c.name)) for c in table.contestants))
    return found


def _means(results: Results) -> Table | None:
    """For each kind of call the means and, below them, the least ratio and its case.

    None if there are fewer than two kinds: its mean is in its table then.
    """
    means, least = findings.means(results), findings.least(results)
    contestants = [c for c in results.contestants if c.kind != "baseline"]
    if len(means) < 2 or not contestants:
        return None
    found = Table("geometric mean,\nthe least, and where", title="summary", title_justify="left")
    for contestant in contestants:
        found.add_column(contestant.name, justify="right")
    for part, column in means.items():
        by_name = {mean.contestant.name: mean for mean in column}
        worst = least.get(part, {})
        cells = [
            _mean(by_name.get(c.name)).append(_least(worst.get(c.name)), "dim") for c in contestants
        ]
        found.add_row(str(part), *cells)
    return found


def _least(least: findings.Least | None) -> str:
    """The ratio and the case; nothing for a contestant without any ratio."""
    if least is None:
        return ""
    return f"\n{times(least.ratio)}: {', '.join([shape(least.case), *extras(least.case)])}"


def _memory(results: Results) -> Table | None:
    """The memory of a training step; None if it was not measured."""
    by_case = findings.memory(results)
    if not by_case:
        return None
    found = Table("peak memory")
    for contestant in results.contestants:
        found.add_column(contestant.name, justify="right")
    for case, sizes in by_case.items():
        taken = [size(sizes[c.name]) if c.name in sizes else "" for c in results.contestants]
        found.add_row(tables.case_words(case), *taken)
    return found


def _mean(mean: findings.Mean | None) -> Text:
    """The mean, and the number of its cases if they are not all cases."""
    if mean is None or mean.ratio is None:
        return Text("")
    of = "" if mean.cases == mean.asked else f"\n{mean.cases} of {mean.asked}"
    return Text(times(mean.ratio), "bold").append(of, "dim")


def _style(kind: str) -> str:
    return "dim" if kind in _QUIET else _STYLES.get(kind, "")


def print_changes(
    out: Console, old: Report, new: Report, changes: Sequence[Change], slower: Sequence[Change]
) -> None:
    """Print every case before and after, and the cases that are slower than allowed."""
    out.print(Text(f"Against {old.created}, {old.commit[:12] or 'no commit'}", "bold"))
    if (old.machine.cpu, old.machine.cpus) != (new.machine.cpu, new.machine.cpus):
        out.print(Text(f"That was on another machine: {old.machine.cpu}", "yellow"))
    if not changes:
        out.print("There is nothing to compare: no backend has a time in a case of both.")
        if (before := Results(old).baseline) != Results(new).baseline:
            out.print(f"Its ratios are to another baseline: {before}.")
        return
    table = Table()
    for heading in ("", "T, B, I, H"):
        table.add_column(heading)
    for heading in ("before", "after", "change"):
        table.add_column(heading, justify="right")
    for change in changes:
        after = change.verdict if change.after is None else times(change.after)
        faster = "" if change.after is None else times(1 / change.slower)
        table.add_row(
            *(change.backend, tables.case_words(change.case), times(change.before), after),
            Text(faster, "red" if change in slower else ""),
        )
    out.print(table)
    base = Results(new).baseline
    out.print(f"Ratios to {base}, each of its own run; change: times as fast as before.")
    for change in slower:
        what = change.reason or f"{change.slower:.2f} times as long as before, by {base}'s measure"
        where = f"{change.backend}, {tables.case_words(change.case)}"
        out.print(Text(f"SLOWER {where}: {what}", "bold red"))

"""What a row of the table found: its figures, and how they stand to their bars."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.table import Table


@dataclass(frozen=True)
class Finding:
    """One figure of the table.

    Attributes:
        row: the section that it belongs to.
        what: what was measured.
        measured: the figure.
        unit: of the figure and its bar.
        bar: what it must reach, or None if it is for information.
        at_most: whether the bar is an upper one.
    """

    row: str
    what: str
    measured: float
    unit: str = "x"
    bar: float | None = None
    at_most: bool = False

    @property
    def met(self) -> bool | None:
        """Whether the bar is reached; None without a bar."""
        if self.bar is None:
            return None
        return self.measured <= self.bar if self.at_most else self.measured >= self.bar

    def cells(self) -> tuple[str, str, str, str]:
        """What, measured, bar, met or not."""
        sign = "<=" if self.at_most else ">="
        bar = "" if self.bar is None else f"{sign} {_figure(self.bar)} {self.unit}"
        verdict = {True: "[green]met", False: "[bold red]missed", None: ""}[self.met]
        return self.what, f"{_figure(self.measured)} {self.unit}", bar, verdict


@dataclass
class Section:
    """All of one row; filled while it is measured, so that an interrupted one can be shown.

    Attributes:
        name: how `--only` calls it.
        title: what it is about.
        records: the rows of its detailed table, all with the same keys; values that are dicts go
            to the JSON file only.
        findings: its figures.
        data: what else goes to the JSON file.
    """

    name: str
    title: str
    records: list[dict[str, Any]] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    data: dict[str, Any] = field(default_factory=dict)

    def record(self, **values: Any) -> None:
        """Add a row to the detailed table."""
        self.records.append(values)
        self.progress(*values.values())

    def progress(self, *values: object) -> None:
        """Say on stderr what was just measured; a live display would take processor time."""
        shown = (_cell(value) for value in values if not isinstance(value, dict))
        print(f"{self.name}: {'  '.join(shown)}", file=sys.stderr, flush=True)

    def at_least(self, what: str, measured: float, bar: float, unit: str = "x") -> None:
        """Add a figure that must reach `bar`."""
        self.findings.append(Finding(self.name, what, measured, unit, bar))

    def at_most(self, what: str, measured: float, bar: float, unit: str = "x") -> None:
        """Add a figure that must not exceed `bar`."""
        self.findings.append(Finding(self.name, what, measured, unit, bar, at_most=True))

    def note(self, what: str, measured: float, unit: str = "x") -> None:
        """Add a figure without a bar."""
        self.findings.append(Finding(self.name, what, measured, unit))

    def table(self) -> Table | None:
        """The detailed table, or None if it has no rows."""
        if not self.records:
            return None
        table = Table(title=f"{self.name}: {self.title}", title_justify="left")
        columns = [k for k, value in self.records[0].items() if not isinstance(value, dict)]
        for column in columns:
            text = isinstance(self.records[0][column], str)
            heading = column.replace("_", " ")
            table.add_column(heading, justify="left" if text else "right", no_wrap=text)
        for record in self.records:
            table.add_row(*(_cell(record[column]) for column in columns))
        return table

    def as_dict(self) -> dict[str, Any]:
        """The same as plain data, for JSON."""
        findings = [{**asdict(finding), "met": finding.met} for finding in self.findings]
        data = {"title": self.title, "records": self.records, "findings": findings}
        return {**data, **self.data}


def bars(title: str, findings: Iterable[Finding]) -> Table:
    """What was measured next to what must be reached."""
    table = Table(title=title, title_justify="left")
    for heading in ("row", "what"):
        table.add_column(heading)
    for heading in ("measured", "bar"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("")
    last = None
    for finding in findings:
        if last not in (None, finding.row):
            table.add_section()
        table.add_row("" if finding.row == last else finding.row, *finding.cells())
        last = finding.row
    return table


def _cell(value: object) -> str:
    if value is None:
        return ""
    return _figure(value) if isinstance(value, float) else str(value)


def _figure(value: float) -> str:
    """Three figures, and all of those before the point."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"

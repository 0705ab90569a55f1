"""The tables of a report: a row for each case, a cell for each contestant."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from rnnjit.bench.records import Case, ContestantInfo, Measurement
from rnnjit.bench.report.results import (
    Results,
    described,
    duration,
    extras,
    seconds,
    shape,
    size,
    started,
    threads,
    times,
)


class Cell(NamedTuple):
    """The result of one contestant in one case.

    Attributes:
        main: the ratio to eager; for eager itself the time; without a time the verdict.
        more: the time, if `main` is a ratio.
        hint: percentiles, errors and memory, or the reason for the verdict.
        kind: "time", "slow" (slower than eager), "best" (the fastest), "none" or a verdict.
        order: the key by which readers sort rows; None sorts last.
    """

    main: str
    more: str
    hint: str
    kind: str
    order: float | None


class Row(NamedTuple):
    """A case: its label, further options, and its cells in the order of the contestants."""

    label: str
    more: str
    cells: tuple[Cell, ...]


class Table(NamedTuple):
    """Comparable cases; `first` is the heading of the column of labels."""

    title: str
    first: str
    contestants: tuple[ContestantInfo, ...]
    rows: tuple[Row, ...]


def shape_tables(results: Results) -> list[Table]:
    """A table for each mode, dtype and number of threads, without the cases of sweeps."""
    return [
        _table(results, str(part), "T, B, I, H", cases)
        for part, cases in results.slices(results.shapes()).items()
    ]


def sweep_tables(results: Results) -> list[Table]:
    """A table for each sweep."""
    found = []
    for sweep in results.sweeps:
        case = sweep.cases[0]
        title = f"{sweep.field}: {case.mode}, {case.dtype}, {sweep.constant}"
        found.append(_table(results, title, sweep.field, sweep.cases, field=sweep.field))
    return found


def _table(
    results: Results, title: str, first: str, cases: Sequence[Case], field: str = ""
) -> Table:
    """A table whose row labels are the values of `field`, or the shapes if it is empty."""
    asked = [c for c in results.contestants if any(results.of(c.name, case) for case in cases)]
    # Eager comes last, since the ratios to it are more important than its times.
    contestants = tuple(sorted(asked, key=lambda c: c.kind == "baseline"))
    found = []
    for case in cases:
        label = str(getattr(case, field)) if field else shape(case)
        more = [] if field else extras(case)
        if case.cold:
            more.append(started(case))
        cells = tuple(_cell(results, contestant, case) for contestant in contestants)
        found.append(Row(label, ", ".join(more), cells))
    return Table(title, first, contestants, tuple(found))


def _cell(results: Results, contestant: ContestantInfo, case: Case) -> Cell:
    measurement = results.of(contestant.name, case)
    if measurement is None:
        return Cell("", "", "not asked", "none", None)
    if measurement.verdict != "right":
        return Cell(measurement.verdict, "", measurement.reason, measurement.verdict, None)
    taken = seconds(measurement)
    if taken is None:
        return Cell("no time", "", "it was right, but was not timed", "none", None)
    ratio = results.ratio(contestant.name, case)
    best = taken == min(
        value for c in results.contestants if (value := results.seconds(c.name, case)) is not None
    )
    # A cold start shows times: its ratio to eager would compare compiling with not compiling.
    if contestant.kind == "baseline" or ratio is None or case.cold:
        kind = "best" if best else "time"
        return Cell(duration(taken), "", _hint(results, measurement), kind, taken)
    kind = "best" if best else "slow" if ratio < 1 else "time"
    return Cell(times(ratio), duration(taken), _hint(results, measurement), kind, ratio)


def _hint(results: Results, measurement: Measurement) -> str:
    """The details of a measurement besides its median."""
    parts = []
    if measurement.p20 is not None and measurement.p80 is not None:
        parts.append(f"p20 {duration(measurement.p20)}, p80 {duration(measurement.p80)}")
        parts.append(f"{measurement.samples} samples of {measurement.calls} calls")
    bound = results.bound(measurement)
    if bound is not None:
        parts.append(f"{bound.share:.0%} of the machine's limit, bound by {bound.name}")
    if measurement.error is not None:
        eager = measurement.eager_error
        parts.append(
            f"largest error {measurement.error:.1e}"
            + ("" if eager is None else f" (eager {eager:.1e})")
        )
    if measurement.first_call is not None:
        parts.append(f"first call {duration(measurement.first_call)}")
    if measurement.memory is not None:
        parts.append(f"memory {size(measurement.memory)}")
    return "; ".join(parts)


def setting(case: Case) -> str:
    """Mode, dtype and threads; for a cold start also its group, which names the cache state."""
    mode = f"{case.mode}, {started(case)}" if case.cold else case.mode
    return f"{mode}, {case.dtype}, {threads(case.threads)}"


def case_words(case: Case) -> str:
    """A case in full, in one line."""
    return f"{described(case)}; {setting(case)}"

"""Converts a report to one flat row per measurement, so that many runs can be joined."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rnnjit.bench import roofline
from rnnjit.bench.records import Case, Measurement, Report
from rnnjit.bench.report.results import Results, seconds

Row = dict[str, Any]


def rows(report: Report) -> list[Row]:
    """One row for each measurement, all with the same columns in the same order.

    Each row also describes its run: commit, created, preset, machine, and versions
    (`version_torch` and so on; a package of only some contestants is None in the rows of the
    others). Derived columns are `ratio` (times as fast as eager), `share_of_peak` (of the peak rate
    of multiply-adds), `share_of_bound` (of the machine's limit) and `bound` (what bounds the call).
    Unknown values are None.
    """
    results = Results(report)
    own = {c.name: c.versions for c in report.contestants}
    names = dict.fromkeys(report.versions)
    for measurement in report.measurements:
        names.update(dict.fromkeys(own.get(measurement.contestant, {})))
    found = []
    for measurement in report.measurements:
        versions = {**report.versions, **own.get(measurement.contestant, {})}
        found.append(
            {
                **_run(report),
                **_contestant(results, measurement.contestant),
                **_fields(measurement.case),
                **_fields(measurement, without="contestant case"),
                **_derived(results, measurement),
                **{f"version_{name}": versions.get(name) for name in names},
            }
        )
    return found


def write_csv(report: Report, path: str | Path) -> None:
    """Write `rows` as CSV: a line of column names, "" for None, floats with all their digits.

    Raises:
        OSError: `path` cannot be written.
    """
    with Path(path).open("w", encoding="utf-8", newline="") as file:
        file.write(as_csv(report))


def as_csv(report: Report) -> str:
    """The text that `write_csv` writes."""
    file = io.StringIO()
    found = rows(report)
    writer = csv.DictWriter(file, found[0] if found else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(found)
    return file.getvalue()


def _run(report: Report) -> Row:
    machine = report.machine
    return {
        "preset": report.preset,
        "created": report.created,
        "commit": report.commit,
        "complete": report.complete,
        "format": report.format,
        "cpu": machine.cpu,
        "system": machine.system,
        "cpus": machine.cpus,
        "isa": machine.isa,
    }


def _contestant(results: Results, name: str) -> Row:
    found = next((c for c in results.report.contestants if c.name == name), None)
    return {
        "contestant": name,
        "kind": None if found is None else found.kind,
        "title": name if found is None else found.title,
    }


def _fields(record: Case | Measurement, without: str = "") -> Row:
    left_out = without.split()
    return {
        name: getattr(record, name) for name in record.__struct_fields__ if name not in left_out
    }


def _derived(results: Results, measurement: Measurement) -> Mapping[str, Any]:
    case, machine = measurement.case, results.report.machine
    bound, taken = results.bound(measurement), seconds(measurement)
    share = None
    if bound is not None and taken is not None:
        share = roofline.share_of_peak(case, taken, machine)
    return {
        "ratio": results.ratio(measurement.contestant, case),
        "share_of_peak": share,
        "share_of_bound": None if bound is None else bound.share,
        "bound": None if bound is None else bound.name,
    }

"""The results of whole models, as data and as JSON on disk. Times are seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

from rnnjit.bench.records import FORMAT, Machine, Record, Verdict, decode
from rnnjit.runtime.timing import Timing

#: What is timed: "inference" is a whole call without gradients, "training" a whole step.
What = Literal["inference", "training"]
#: The preset of `rnnjit bench` that measures whole models.
PRESET: Literal["models"] = "models"


class Quantiles(Record, frozen=True):
    """How long a call takes.

    Attributes:
        p20, p50, p80: the 20th, 50th and 80th percentile of the samples.
        samples: the number of samples.
        calls: the number of calls of which a sample is the mean.
    """

    p20: float
    p50: float
    p80: float
    samples: int
    calls: int

    @classmethod
    def of(cls, timing: Timing | None) -> Quantiles | None:
        """The quantiles of a time; None of None."""
        if timing is None:
            return None
        return cls(
            p20=timing.p20,
            p50=timing.median,
            p80=timing.p80,
            samples=timing.rounds,
            calls=timing.calls,
        )


class About(Record, frozen=True):
    """What is known of a model before it runs; see `ModelCase`.

    Attributes:
        model: the name of its file, without .py.
        name, recurrent, call, source, requires, no_deps, remark: as in `ModelCase`.
    """

    model: str
    name: str
    recurrent: str = ""
    call: str = ""
    source: str = ""
    requires: tuple[str, ...] = ()
    no_deps: tuple[str, ...] = ()
    remark: str = ""


class ModelRow(Record, frozen=True):
    """The result of one pass of a model.

    Attributes:
        about: the model.
        what: the pass; None if its process ended before it named one.
        verdict: whether results are right, and if not, why there is no time; never "declined".
        reason: the verdict in words, "" if right.
        eager: the time of the eager model.
        compiled: the time of the compiled model.
        share: share of the eager call that its recurrent part takes, from 0 to 1.
        versions: versions of Python, rnnjit, torch and the packages.
        created: when it was measured, in ISO 8601 with the offset from UTC.
        commit: as in `rnnjit.bench.records.Report`.
    """

    about: About
    what: What | None
    verdict: Verdict = "right"
    reason: str = ""
    eager: Quantiles | None = None
    compiled: Quantiles | None = None
    share: float | None = None
    versions: dict[str, str] = msgspec.field(default_factory=dict)
    created: str = ""
    commit: str = ""

    @property
    def ratio(self) -> float | None:
        """Times as fast as eager; None without times."""
        if self.eager is None or self.compiled is None:
            return None
        return self.eager.p50 / self.compiled.p50


class ModelReport(Record, frozen=True):
    """One run of the preset "models", or several, merged.

    Attributes:
        machine: the machine, without peaks.
        threads: the number of threads of each process.
        rows: the results, model by model.
        complete: False if the run was interrupted.
        command: the command that repeats the run, "" if there is none.
        preset: the name of the preset.
        format: `FORMAT`.
    """

    machine: Machine
    threads: int
    rows: tuple[ModelRow, ...]
    complete: bool = True
    command: str = ""
    preset: Literal["models"] = PRESET
    format: int = FORMAT


def read_models(path: Path) -> ModelReport:
    """Read the report in a file.

    Raises:
        OSError: the file cannot be read.
        ValueError: it holds no report of models, or one of another format.
    """
    return decode(path.read_bytes(), ModelReport)


def merge(reports: list[ModelReport]) -> ModelReport:
    """One report of several, measured on one machine: of each model the rows of the last one.

    Args:
        reports: at least one.

    Raises:
        ValueError: they are of several machines or numbers of threads.
    """
    last = reports[-1]
    rows: dict[str, list[ModelRow]] = {}
    for report in reports:
        if (report.machine, report.threads) != (last.machine, last.threads):
            raise ValueError(
                f"reports of one machine are needed, got {report.machine.cpu} with "
                f"{report.threads} threads and {last.machine.cpu} with {last.threads}"
            )
        for name in {row.about.model for row in report.rows}:
            rows[name] = [row for row in report.rows if row.about.model == name]
    return msgspec.structs.replace(
        last,
        rows=tuple(row for name in sorted(rows) for row in rows[name]),
        complete=all(report.complete for report in reports),
    )

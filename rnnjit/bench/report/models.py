"""What a report of whole models says: its rows by model, means, and a table for a page."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

from rnnjit.bench.models.records import About, ModelReport, ModelRow, What
from rnnjit.bench.report.results import threads, times

#: Models whose recurrent part takes more of eager's call than this are in the means.
LEAST_SHARE = 0.5
PASSES: tuple[What, ...] = ("inference", "training")


class Model(NamedTuple):
    """The rows of a model.

    Attributes:
        about: the model.
        rows: by pass; None is the pass of a model that ended before it named one.
    """

    about: About
    rows: dict[What | None, ModelRow]


class ModelMean(NamedTuple):
    """The geometric mean of ratios to eager.

    Attributes:
        ratio: times as fast as eager.
        models: the number of models in it.
        timed: the number of models with a ratio.
    """

    ratio: float
    models: int
    timed: int


def models(report: ModelReport) -> list[Model]:
    """The models of a report, in its order."""
    found: dict[str, Model] = {}
    for row in report.rows:
        found.setdefault(row.about.model, Model(row.about, {})).rows[row.what] = row
    return list(found.values())


def mean(report: ModelReport, what: What) -> ModelMean | None:
    """The geometric mean over the models that are mostly recurrent; None without one."""
    timed = [row for row in report.rows if row.what == what and row.ratio is not None]
    mostly = [row.ratio for row in timed if (row.share or 0.0) > LEAST_SHARE and row.ratio]
    if not mostly:
        return None
    return ModelMean(math.exp(sum(map(math.log, mostly)) / len(mostly)), len(mostly), len(timed))


def markdown(report: ModelReport) -> str:
    """The table of a report for a page: a line for each model, one for the means; the machine."""
    lines = [
        _line(["model", "recurrent part", "call", "inference", "training", "remark"]),
        _line(["---"] * 6),
    ]
    for about, rows in models(report):
        cells = [_cell(rows.get(what) or rows.get(None)) for what in PASSES]
        package = f"{about.name}<br>{about.source}"
        lines.append(_line([package, about.recurrent, about.call, *cells, about.remark]))
    means = [mean(report, what) for what in PASSES]
    cells = ["" if each is None else f"**{times(each.ratio)}**" for each in means]
    lines.append(_line(["**geometric mean**, share over 50%", "", "", *cells, ""]))
    versions = {row.versions["torch"] for row in report.rows if "torch" in row.versions}
    torch = f"torch {', '.join(sorted(versions))}"
    machine = f"Measured with {threads(report.threads)} on {report.machine.cpu}, float32, {torch}."
    return "\n".join([*lines, "", machine]) + "\n"


def _cell(row: ModelRow | None) -> str:
    if row is None:
        return ""
    if row.ratio is None or row.share is None:
        return row.verdict
    return f"{times(row.ratio)}, share {row.share:.0%}"


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(" ".join(cell.replace("|", "\\|").split()) for cell in cells) + " |"

"""Prints the table of a report of whole models."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from rnnjit.bench.models.records import ModelReport, ModelRow
from rnnjit.bench.report.models import LEAST_SHARE, PASSES, Model, ModelMean, mean, models
from rnnjit.bench.report.results import duration, threads, times

_STYLES = {"wrong": "bold red", "failed": "bold red"}
_SAYS = {"wrong": "is wrong", "failed": "failed", "absent": "is absent"}


def print_models(out: Console, report: ModelReport) -> None:
    """Print a line for each model, the means, and which models have no time, and why."""
    table = Table("model", title=f"whole models, {threads(report.threads)}", title_justify="left")
    for what in PASSES:
        table.add_column(what, justify="right")
    for model in models(report):
        label = Text(model.about.name).append(f"\n{model.about.recurrent}".rstrip(), "dim")
        table.add_row(label, *(_cell(model, what) for what in PASSES))
    table.add_section()
    table.add_row(
        f"geometric mean,\nrecurrent share over {LEAST_SHARE:.0%}",
        *(_mean(mean(report, what)) for what in PASSES),
    )
    out.print(table)
    for line in _untimed(report):
        out.print(line)
    out.print(
        "Times as fast as eager PyTorch, and below it the medians of eager and compiled, and the "
        "share of the eager call that its recurrent part takes. Only right results have a time."
    )
    if not report.complete:
        out.print(Text("Interrupted: this is what was measured.", "yellow"))


def _cell(model: Model, what: str) -> Text:
    row = next((row for key, row in model.rows.items() if key in (what, None)), None)
    if row is None:
        return Text("")
    if row.verdict != "right":
        return Text(row.verdict, _STYLES.get(row.verdict, "dim"))
    if row.eager is None or row.compiled is None or row.ratio is None:
        return Text("right")
    more = f"\n{duration(row.eager.p50)} to {duration(row.compiled.p50)}"
    share = "" if row.share is None else f", share {row.share:.0%}"
    return Text(times(row.ratio), "red" if row.ratio < 1 else "").append(more + share, "dim")


def _mean(found: ModelMean | None) -> Text:
    if found is None:
        return Text("")
    return Text(times(found.ratio), "bold").append(f"\n{found.models} of {found.timed}", "dim")


def _untimed(report: ModelReport) -> list[Text]:
    """Why models have no times, each reason once."""
    found: dict[tuple[str, str, str], list[ModelRow]] = {}
    for row in report.rows:
        if row.verdict != "right":
            found.setdefault((row.about.name, row.verdict, row.reason), []).append(row)
    lines = []
    for (name, verdict, reason), rows in found.items():
        passes = [str(row.what) for row in rows if row.what is not None]
        where = f" in {' and '.join(passes)}" if passes and verdict != "absent" else ""
        line = f"{name} {_SAYS.get(verdict, verdict)}{where}: {reason}"
        lines.append(Text(line, _STYLES.get(verdict, "")))
    return lines

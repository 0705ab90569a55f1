"""Plots the speed-up of whole models."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from matplotlib.figure import Figure

from rnnjit.bench.models.records import ModelReport
from rnnjit.bench.records import ContestantInfo
from rnnjit.bench.report.models import PASSES, Model, models
from rnnjit.bench.report.plots import style
from rnnjit.bench.report.plots.render import Plot
from rnnjit.bench.report.plots.style import Look, Theme
from rnnjit.bench.report.results import threads, times

_PITCH, _BAR = 34.0, 12.0
#: The room for the words behind the longest bar.
_WORDS = 70.0


def plots(report: ModelReport) -> Iterator[Plot]:
    """The speed-up of each model that has a time; nothing if none has."""
    shown = [model for model in models(report) if any(row.ratio for row in model.rows.values())]
    if shown:
        yield Plot("models", "Speed-up of whole models", partial(figure, report, shown))


def figure(report: ModelReport, shown: list[Model], theme: Theme) -> Figure:
    """Draw a bar for each pass of each model, from 1 to its ratio, with the ratio and the share."""
    looks = [Look(colour, "s", filled=True) for colour in theme.series]
    legend = [
        (ContestantInfo(name=what, kind="backend", title=what), look)
        for what, look in zip(PASSES, looks, strict=False)
    ]
    names = [model.about.name for model in shown]
    made = style.canvas(
        theme,
        "Speed-up of whole models",
        "to eager's speed, longer is better; behind it the share of eager's time that the "
        f"recurrent part takes · float32, {threads(report.threads)}",
        legend,
        height=_PITCH * len(shown) + 8,
        left=max(map(style.width, names)) + 12,
        xlabel="times as fast as eager, the grey line",
    )
    axes = made.axes
    ratios = [row.ratio for model in shown for row in model.rows.values() if row.ratio]
    style.logarithmic(axes.xaxis, [*ratios, 1.0], lambda x: f"{x:g}x", most=int(made.width / 40))
    least, most = axes.get_xlim()
    axes.set_xlim(least, most * (most / least) ** (_WORDS / (made.width - _WORDS)))
    axes.axvline(1.0, color=theme.baseline, linewidth=2.0, zorder=2)
    for place, model in enumerate(shown):
        for what, look, side in zip(PASSES, looks, (-0.5, 0.5), strict=False):
            row = model.rows.get(what)
            if row is None or row.ratio is None:
                continue
            at = place + side * _BAR / _PITCH
            low, high = min(1.0, row.ratio), max(1.0, row.ratio)
            axes.barh(
                [at],
                [high - low],
                height=0.85 * _BAR / _PITCH,
                left=[low],
                color=look.colour,
                zorder=3,
            )
            share = "" if row.share is None else f", {row.share:.0%}"
            axes.annotate(
                f"{times(row.ratio)}{share}",
                (high, at),
                (4, 0),
                textcoords="offset points",
                va="center",
                size=style.TEXT - 1,
                color=theme.ink,
            )
    axes.set_yticks(range(len(shown)), names)
    axes.set_ylim(len(shown) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")
    return made.figure

"""Plots the seconds of the first call of a new process."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from matplotlib.figure import Figure

from rnnjit.bench.records import Case
from rnnjit.bench.report.plots import style
from rnnjit.bench.report.plots.render import Plot
from rnnjit.bench.report.plots.style import Theme
from rnnjit.bench.report.results import Results, described, duration, started, threads

_PITCH = 22.0


def plots(results: Results) -> Iterator[Plot]:
    """A plot for each cold start."""
    cases = [case for case in results.cases if case.cold]
    for number, case in enumerate(cases):
        if any(results.seconds(c.name, case) is not None for c in results.contestants):
            title = f"{case.mode.capitalize()}: {described(case)}, {case.dtype}"
            yield Plot(f"cold-start-{number}", title, partial(figure, results, case))


def figure(results: Results, case: Case, theme: Theme) -> Figure:
    """Draw a bar for each contestant, the fastest first, labelled with its time."""
    looks = style.looks(results.report, theme)
    found = [
        (seconds, contestant)
        for contestant in results.contestants
        if (seconds := results.seconds(contestant.name, case)) is not None
    ]
    found.sort(key=lambda entry: entry[0])
    titles = [contestant.title for _, contestant in found]
    made = style.canvas(
        theme,
        f"{case.mode.capitalize()}: {started(case)}",
        f"shorter is better · {described(case)} · {case.dtype}, {threads(case.threads)}",
        [],
        height=_PITCH * len(found) + 8,
        left=max(map(style.width, titles)) + 12,
        xlabel="seconds until the first call of a new process returns",
    )
    for row, (seconds, contestant) in enumerate(found):
        look = looks[contestant.name]
        made.axes.barh(
            [row],
            [seconds],
            height=0.62,
            color=look.colour if look.filled else theme.surface,
            edgecolor=look.colour,
            linewidth=1.6,
            zorder=3,
        )
        made.axes.annotate(
            duration(seconds),
            (seconds, row),
            (5, 0),
            textcoords="offset points",
            va="center",
            size=style.TEXT,
            color=theme.ink,
        )
    made.axes.set_yticks(range(len(found)), titles)
    made.axes.set_ylim(len(found) - 0.4, -0.6)
    # Room for the times behind the bars.
    made.axes.set_xlim(0, found[-1][0] * 1.25)
    made.axes.grid(visible=False, axis="y")
    return made.figure

"""Plots the seconds of one call against T, B, I, H, layers or threads."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from rnnjit.bench.report.plots import style
from rnnjit.bench.report.plots.render import Plot
from rnnjit.bench.report.plots.style import Theme
from rnnjit.bench.report.results import Results, Sweep, duration

_HEIGHT = 210.0
_NAMES = {
    "T": "T, time steps",
    "B": "B, sequences",
    "I": "I, input features",
    "H": "H, hidden features",
    "layers": "layers",
    "threads": "threads",
}


def plots(results: Results) -> Iterator[Plot]:
    """A plot for each sweep with a time."""
    for number, sweep in enumerate(results.sweeps):
        if any(_line(results, c.name, sweep) for c in results.contestants):
            case = sweep.cases[0]
            yield Plot(
                f"scaling-{sweep.field}-{case.mode}-{number}".replace(" ", "-"),
                f"Scaling in {sweep.field}: {case.mode}, {case.dtype}, {sweep.constant}",
                partial(figure, results, sweep),
            )


def figure(results: Results, sweep: Sweep, theme: Theme) -> Figure:
    """Draw a line for each contestant, with p20 to p80 shaded, on logarithmic axes."""
    looks = style.looks(results.report, theme)
    drawn = [c for c in results.contestants if _line(results, c.name, sweep)]
    made = style.canvas(
        theme,
        f"Scaling in {sweep.field}: {sweep.cases[0].mode}",
        f"time of one call, lower is better · {sweep.constant}, {sweep.cases[0].dtype}",
        [(c, looks[c.name]) for c in drawn],
        height=_HEIGHT,
        left=58.0,
        xlabel=_NAMES[sweep.field],
    )
    axes = made.axes
    everything = []
    for contestant in drawn:
        line = _line(results, contestant.name, sweep)
        at, low, middle, high = zip(*line, strict=True)
        look = looks[contestant.name]
        base = contestant.kind == "baseline"
        axes.fill_between(at, low, high, color=look.colour, alpha=0.18, linewidth=0, zorder=2)
        axes.plot(
            at,
            middle,
            linewidth=2.6 if base else 1.8,
            zorder=2.5 if base else 3,
            **look.marks(theme),
        )
        everything += [*low, *high]
    values = [getattr(case, sweep.field) for case in sweep.cases]
    axes.set_xscale("log")
    axes.set_xticks(values, [str(value) for value in values])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.grid(visible=False, axis="x")
    style.logarithmic(axes.yaxis, everything, duration)
    return made.figure


def _line(results: Results, contestant: str, sweep: Sweep) -> list[tuple[int, float, float, float]]:
    """(value, p20, p50, p80) for each case with a time."""
    found = []
    for case in sweep.cases:
        measurement = results.of(contestant, case)
        middle = results.seconds(contestant, case)
        if measurement is not None and middle is not None:
            low, high = measurement.p20 or middle, measurement.p80 or middle
            found.append((getattr(case, sweep.field), low, middle, high))
    return found

"""Roofline plots: operations per second against operations per byte, below the machine's peaks."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial

from matplotlib.figure import Figure

from rnnjit.bench import roofline
from rnnjit.bench.records import Case, Machine
from rnnjit.bench.report.plots import style
from rnnjit.bench.report.plots.render import Plot
from rnnjit.bench.report.plots.style import Canvas, Theme
from rnnjit.bench.report.results import Results, Slice, layer_words, threads

_HEIGHT = 230.0
_PREFIXES = (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3))


def plots(results: Results) -> Iterator[Plot]:
    """A plot for each mode, dtype and number of threads that the machine was measured for."""
    machine = results.report.machine
    for part, cases in results.slices(results.shapes(cold=False)).items():
        placed = {
            case: found
            for case in cases
            if (found := _intensity(case, machine)) is not None
            and any(results.seconds(c.name, case) for c in results.contestants)
        }
        if placed:
            yield Plot(
                f"roofline-{part.key}", f"Roofline: {part}", partial(figure, results, part, placed)
            )


def figure(results: Results, part: Slice, placed: dict[Case, float], theme: Theme) -> Figure:
    """Draw a mark for each case and contestant, below the roofs of the levels of memory.

    Args:
        results: the results.
        part: the slice that the cases belong to.
        placed: by case, the operations per byte of the level that takes longest.
        theme: the colours.
    """
    looks = style.looks(results.report, theme)
    reached = [
        (c, placed[case], roofline.work(case).flops / seconds)
        for case in placed
        for c in results.contestants
        if (seconds := results.seconds(c.name, case)) is not None
    ]
    drawn = {contestant.name for contestant, _, _ in reached}
    setting = ", ".join([*layer_words(part.cell), part.dtype, threads(part.threads)])
    made = style.canvas(
        theme,
        f"Roofline: {part.mode}",
        f"nearer to the roof is better · {setting}",
        [(c, looks[c.name]) for c in results.contestants if c.name in drawn],
        height=_HEIGHT,
        left=76.0,
        xlabel="operations for each byte that is read",
    )
    for contestant, at, rate in reached:
        base = contestant.kind == "baseline"
        marks = looks[contestant.name].marks(theme)
        made.axes.plot([at], [rate], linestyle="none", zorder=3 if base else 4, **marks)
    case = next(iter(placed))
    peak = _peak(case, results.report.machine)
    rates = [rate for _, _, rate in reached]
    ends = [*placed.values()]
    style.logarithmic(made.axes.yaxis, [*rates, peak * 1.6], _rate)
    style.logarithmic(made.axes.xaxis, [min(ends) / 3, max(ends) * 3], lambda x: f"{x:g}")
    _roof(results.report.machine, case, made, theme)
    return made.figure


def _roof(machine: Machine, case: Case, canvas: Canvas, theme: Theme) -> None:
    """Draw the peak and the slope of each level, with its name where it meets the peak."""
    axes = canvas.axes
    peak = _peak(case, machine)
    ends, heights = axes.get_xlim(), axes.get_ylim()
    axes.plot(ends, [peak, peak], color=theme.ink, linewidth=1.6, zorder=2)
    axes.annotate(
        f"multiply-adds, {_rate(peak)}",
        (0.01, peak),
        (0, 4),
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        size=style.TEXT - 1,
        color=theme.ink,
    )
    # On logarithmic axes the slope is 1; this is its angle on the canvas.
    rise = _HEIGHT / math.log(heights[1] / heights[0])
    angle = math.atan2(rise, canvas.width / math.log(ends[1] / ends[0]))
    for band in machine.bandwidths:
        meets = min(peak / band.rate, ends[1])
        if band.threads != case.threads or meets <= ends[0]:
            continue
        line = ([ends[0], meets], [ends[0] * band.rate, meets * band.rate])
        axes.plot(*line, color=theme.muted, linewidth=1.2, zorder=2)
        axes.annotate(
            band.level,
            (meets, meets * band.rate),
            # Offset back along the slope and below it, so that it does not overlap the peak.
            (2 * math.sin(angle) - 6 * math.cos(angle), -2 * math.cos(angle) - 6 * math.sin(angle)),
            textcoords="offset points",
            rotation=math.degrees(angle),
            rotation_mode="anchor",
            ha="right",
            va="top",
            size=style.TEXT - 1.5,
            color=theme.muted,
        )


def _peak(case: Case, machine: Machine) -> float:
    """The peak in operations per second; the machine must have been measured for the case."""
    return roofline.work(case).flops / roofline.limits(case, machine)["compute"]


def _intensity(case: Case, machine: Machine) -> float | None:
    """Operations per byte of the level that takes longest; None if it was not measured."""
    levels = {k: v for k, v in roofline.limits(case, machine).items() if k != "compute"}
    if not levels:
        return None
    longest = max(levels, key=levels.__getitem__)
    (rate,) = {
        band.rate
        for band in machine.bandwidths
        if (band.level, band.threads) == (longest, case.threads)
    }
    return roofline.work(case).flops / (levels[longest] * rate)


def _rate(flops: float) -> str:
    for prefix, scale in _PREFIXES:
        if flops >= scale * 0.999:
            return f"{flops / scale:.3g} {prefix}flop/s"
    return f"{flops:.3g} flop/s"

"""Plots with a row for each shape and a mark for each contestant: speed-up and memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rnnjit.bench.records import Case, ContestantInfo
from rnnjit.bench.report.plots import style
from rnnjit.bench.report.plots.render import Plot
from rnnjit.bench.report.plots.style import Theme
from rnnjit.bench.report.results import Results, Slice, extras, layer_words, shape, threads

_PITCH = 22.0
#: The pitch for labels with two lines.
_WIDE_PITCH = 30.0
#: Marks that are nearer than `_NEAR` are moved from the middle of their row, by these offsets.
_NEAR = 6.0
_ASIDE = (0.0, -4.5, 4.5, -8.5, 8.5)
#: A process grows by at least a page; no growth is drawn as one page.
_PAGE = 4096
_MIB = 2**20

#: For each case, the values of contestants by name; never empty.
Marks = dict[Case, dict[str, float]]
#: The value of a contestant in a case, None for no mark.
Value = Callable[[ContestantInfo, Case], float | None]


def speedups(results: Results) -> Iterator[Plot]:
    """Speed-ups over the baseline, which is a line at 1, for each contestant."""

    def ratio(contestant: ContestantInfo, case: Case) -> float | None:
        baseline = contestant.kind == "baseline"
        return None if baseline else results.ratio(contestant.name, case)

    for part, marks in _by_slice(results, ratio):
        draw = partial(
            _figure,
            results,
            title=f"Speed-up by shape: {part.mode}",
            note=f"to {results.baseline}'s speed, further right is better · {_setting(part)}",
            marks=marks,
            words=lambda ratio: f"{ratio:g}x",
            xlabel=f"times as fast as {results.baseline}, the grey line",
            line=1.0,
        )
        yield Plot(_key("speedup", part), f"Speed-up by shape: {part}", draw)


def memory(results: Results) -> Iterator[Plot]:
    """The growth of the process of each contestant during a call."""

    def mebibytes(contestant: ContestantInfo, case: Case) -> float | None:
        found = results.of(contestant.name, case)
        if found is None or found.verdict != "right" or found.memory is None:
            return None
        return max(found.memory, _PAGE) / _MIB

    for part, marks in _by_slice(results, mebibytes):
        draw = partial(
            _figure,
            results,
            title=f"Memory by shape: {part.mode}",
            note=f"further left is better · {_setting(part)}",
            marks=marks,
            words=lambda mib: f"{mib:g}",
            xlabel="MiB that the process grew by at most",
        )
        yield Plot(_key("memory", part), f"Memory by shape: {part}", draw)


def _by_slice(results: Results, value: Value) -> Iterator[tuple[Slice, Marks]]:
    """The marks of each slice that has any."""
    for part, cases in results.slices(results.shapes(cold=False)).items():
        marks = {}
        for case in cases:
            values = {c.name: value(c, case) for c in results.contestants}
            if known := {name: v for name, v in values.items() if v is not None}:
                marks[case] = known
        if marks:
            yield part, marks


def _key(name: str, part: Slice) -> str:
    return f"{name}-{part.key}"


def _setting(part: Slice) -> str:
    return ", ".join([*layer_words(part.cell), part.dtype, threads(part.threads)])


def _figure(
    results: Results,
    theme: Theme,
    *,
    title: str,
    note: str,
    marks: Marks,
    words: Callable[[float], str],
    xlabel: str,
    line: float | None = None,
) -> Figure:
    """Draw a row for each case, from top to bottom, and a logarithmic axis of positive values.

    Args:
        results: the results, for their contestants.
        theme: the colours.
        title: the title.
        note: the subtitle: the unit, and which direction is better.
        marks: the values.
        words: formats a value.
        xlabel: label of the axis.
        line: the value of eager, drawn as a vertical line; None for no line.
    """
    looks = style.looks(results.report, theme)
    shown = {name for points in marks.values() for name in points}
    labels = [_label(case) for case in marks]
    lines = ["T, B, I, H", *(line for label in labels for line in label.split("\n"))]
    pitch = _WIDE_PITCH if any("\n" in label for label in labels) else _PITCH
    made = style.canvas(
        theme,
        title,
        note,
        [(c, looks[c.name]) for c in results.contestants if c.name in shown],
        height=pitch * len(marks) + 8,
        left=max(map(style.width, lines)) + 12,
        xlabel=xlabel,
    )
    axes = made.axes
    ends = [] if line is None else [line]
    everything = [value for points in marks.values() for value in points.values()]
    style.logarithmic(axes.xaxis, [*everything, *ends], words, most=int(made.width / 40))
    if line is not None:
        axes.axvline(line, color=theme.baseline, linewidth=2.0, zorder=1)
    scale = made.width / math.log(axes.get_xlim()[1] / axes.get_xlim()[0])
    for row, points in enumerate(marks.values()):
        reach = [*points.values(), *ends]
        axes.plot([min(reach), max(reach)], [row, row], color=theme.grid, linewidth=3, zorder=0.5)
        for name, aside in _aside(points, scale).items():
            axes.plot(
                [points[name]],
                [row + aside / pitch],
                linestyle="none",
                zorder=3,
                **looks[name].marks(theme),
            )
    _rows(axes, labels, theme)
    return made.figure


def _rows(axes: Axes, labels: list[str], theme: Theme) -> None:
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")
    axes.annotate(
        "T, B, I, H",
        (0, 1),
        (-5, 2),
        xycoords="axes fraction",
        textcoords="offset points",
        ha="right",
        size=style.TEXT - 1,
        color=theme.muted,
    )


def _aside(points: Mapping[str, float], scale: float) -> dict[str, float]:
    """The offset of each mark from the middle of its row, in points, to avoid overlaps.

    Args:
        points: values by name.
        scale: width of a factor of e on the axis, in points.
    """
    found: dict[str, float] = {}
    ends = [-math.inf] * len(_ASIDE)
    for name in sorted(points, key=lambda name: points[name]):
        at = scale * math.log(points[name])
        # The first free lane, or else the one whose last mark is farthest away.
        free = (lane for lane, end in enumerate(ends) if at - end >= _NEAR)
        lane = next(free, ends.index(min(ends)))
        ends[lane] = at
        found[name] = _ASIDE[lane]
    return found


def _label(case: Case) -> str:
    more = extras(case)
    return shape(case) + ("\n" + ", ".join(more) if more else "")

"""The layout of plots that have a row for each case and a mark for each contestant."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from matplotlib.axes import Axes

from rnnjit.bench.plots import style
from rnnjit.bench.plots.style import Canvas, Theme
from rnnjit.bench.records import Case
from rnnjit.bench.results import Results, extras, shape

_PITCH = 22.0
#: Of labels with two lines.
_WIDE_PITCH = 30.0
#: Marks that are nearer than this are put aside, so far from the middle of their row.
_NEAR = 6.0
_ASIDE = (0.0, -4.5, 4.5, -8.5, 8.5)


def dots(
    results: Results,
    theme: Theme,
    title: str,
    note: str,
    values: Mapping[Case, Mapping[str, float]],
    words: Callable[[float], str],
    xlabel: str,
    line: float | None = None,
) -> Canvas:
    """A row for each case, from above in their order, and a logarithmic axis of positive values.

    Args:
        results: where the contestants come from.
        theme: the colours.
        title: what is shown.
        note: the unit, and what is better.
        values: of the contestants, by name, for each case; none of them empty.
        words: how a value is written.
        xlabel: of the axis.
        line: where eager stands, in every row.
    """
    looks = style.looks(results.report, theme)
    shown = {name for points in values.values() for name in points}
    labels = [_label(case) for case in values]
    lines = ["T, B, I, H", *(line for label in labels for line in label.split("\n"))]
    pitch = _WIDE_PITCH if any("\n" in label for label in labels) else _PITCH
    made = style.canvas(
        theme,
        title,
        note,
        [(c, looks[c.name]) for c in results.contenders if c.name in shown],
        height=pitch * len(values) + 8,
        left=max(map(style.width, lines)) + 12,
        xlabel=xlabel,
    )
    axes = made.axes
    ends = [] if line is None else [line]
    everything = [value for points in values.values() for value in points.values()]
    style.logarithmic(axes.xaxis, [*everything, *ends], words, most=int(made.width / 40))
    if line is not None:
        axes.axvline(line, color=theme.baseline, linewidth=2.0, zorder=1)
    scale = made.width / math.log(axes.get_xlim()[1] / axes.get_xlim()[0])
    for row, points in enumerate(values.values()):
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
    return made


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
    """How far each mark goes from the middle of its row, so that none lies upon another.

    Args:
        points: by name.
        scale: width of the axis for a factor of e.
    """
    found: dict[str, float] = {}
    ends = [-math.inf] * len(_ASIDE)
    for name in sorted(points, key=lambda name: points[name]):
        at = scale * math.log(points[name])
        # The first that is free, or else whichever has been free for longest.
        free = (lane for lane, end in enumerate(ends) if at - end >= _NEAR)
        lane = next(free, ends.index(min(ends)))
        ends[lane] = at
        found[name] = _ASIDE[lane]
    return found


def _label(case: Case) -> str:
    more = extras(case)
    return shape(case) + ("\n" + ", ".join(more) if more else "")

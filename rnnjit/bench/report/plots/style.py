"""The style of all plots: the colours of both themes, sizes, and the canvas with its legend.

Lengths are in points, 72 per inch.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.axis import Axis, XAxis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from rnnjit.bench.records import ContestantInfo, Report

#: The width of every plot: that of a phone screen, so that its text is legible there.
WIDTH = 400.0
TEXT = 10.0
_TITLE = 12.0
_LINE = 15.0
#: Mean width of a character relative to the text size, rounded up.
_CHARACTER = 0.6
_RIGHT = 14.0


class Theme(NamedTuple):
    """The colours for one background, all different, as `#rrggbb` in lower case."""

    surface: str
    ink: str
    muted: str
    grid: str
    baseline: str
    series: tuple[str, ...]


# Adjacent colours of the series are distinguishable with any form of colour blindness.
LIGHT = Theme(
    "#ffffff",
    "#1c2024",
    "#5b6470",
    "#dfe3e8",
    "#7d8590",
    (
        "#2563eb",
        "#c2500a",
        "#00a381",
        "#a89300",
        "#f02fbf",
        "#1f4d00",
        "#3a2c94",
        "#f0264a",
    ),
)
DARK = Theme(
    "#14181d",
    "#e8ebee",
    "#9ba4ae",
    "#2d343c",
    "#8b949e",
    (
        "#5e9ef9",
        "#e18865",
        "#22e6c3",
        "#ecd227",
        "#d6336c",
        "#b4ff84",
        "#7456f1",
        "#f8431f",
    ),
)
THEMES = {"light": LIGHT, "dark": DARK}

#: Ticks within each power of ten; the first entry that gives few enough ticks is used.
_DIGITS = ((1, (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0)), (1, (1.0, 2.0, 5.0)), (1, (1.0, 3.0)))
_MARKERS = "oDsv^P*X<>ph"


class Look(NamedTuple):
    """The style of one contestant, the same in every plot."""

    colour: str
    marker: str
    filled: bool

    def marks(self, theme: Theme) -> dict[str, Any]:
        """Arguments of `Axes.plot`: a backend's marks are filled, a peer's are hollow."""
        return {
            "color": self.colour,
            "marker": self.marker,
            "markersize": 6.5,
            "markerfacecolor": self.colour if self.filled else theme.surface,
            "markeredgecolor": self.colour,
            "markeredgewidth": 1.6,
        }


def looks(report: Report, theme: Theme) -> dict[str, Look]:
    """The style of each contestant, by its position in the report; absent ones included."""
    found = {}
    place = 0
    for contestant in report.contestants:
        if contestant.kind == "baseline":
            found[contestant.name] = Look(theme.baseline, "|", filled=True)
            continue
        colour = theme.series[place % len(theme.series)]
        filled = contestant.kind == "backend"
        found[contestant.name] = Look(colour, _MARKERS[place % len(_MARKERS)], filled)
        place += 1
    return found


def width(text: str, size: float = TEXT) -> float:
    """An estimate of the width of a text, on the high side."""
    return len(text) * size * _CHARACTER


class Canvas(NamedTuple):
    """A figure with one pair of axes, `width` wide, its title and legend above them."""

    figure: Figure
    axes: Axes
    width: float


def canvas(
    theme: Theme,
    title: str,
    note: str,
    legend: Sequence[tuple[ContestantInfo, Look]],
    *,
    height: float,
    left: float,
    xlabel: str,
) -> Canvas:
    """Create a figure with axes of the given height, a title and a legend.

    Args:
        theme: the colours.
        title: the title.
        note: the subtitle: the unit, and which direction is better.
        legend: the contestants in the legend, with their styles.
        height: height of the axes.
        left: space for the labels of the vertical axis.
        xlabel: label of the horizontal axis.
    """
    columns = _columns([contestant.title for contestant, _ in legend])
    notes = textwrap.wrap(note, int((WIDTH - 12) / (0.55 * (TEXT - 1))))
    head = 22.0 + 12.0 * len(notes)
    top = head + _LINE * (math.ceil(len(legend) / columns) if legend else 0) + 22.0
    below = 36.0
    whole = top + height + below
    figure = Figure(figsize=(WIDTH / 72, whole / 72), facecolor=theme.surface)
    axes = figure.add_axes(
        (left / WIDTH, below / whole, (WIDTH - left - _RIGHT) / WIDTH, height / whole)
    )
    figure.text(
        6 / WIDTH, 1 - 14 / whole, title, size=_TITLE, weight="bold", color=theme.ink, va="center"
    )
    for i, line in enumerate(notes):
        at = 1 - (29 + 12 * i) / whole
        figure.text(6 / WIDTH, at, line, size=TEXT - 1, color=theme.muted, va="center")
    if legend:
        _legend(figure, theme, legend, columns, at=1 - (head + 2) / whole)
    _plain(axes, theme)
    axes.set_xlabel(xlabel, size=TEXT, color=theme.muted, loc="right")
    return Canvas(figure, axes, WIDTH - left - _RIGHT)


def logarithmic(
    axis: Axis, values: Sequence[float], words: Callable[[float], str], *, most: int = 7
) -> None:
    """Make an axis logarithmic, with limits around `values` and at most `most` ticks.

    Args:
        axis: the axis.
        values: positive values, at least one.
        words: formats a tick.
        most: the most ticks.
    """
    low, high = min(values) / 1.15, max(values) * 1.15
    if high / low < 3:
        low, high = low / 1.5, high * 1.5
    ticks = _round_numbers(low, high, most)
    name = "x" if isinstance(axis, XAxis) else "y"
    axis.axes.set(**{f"{name}scale": "log", f"{name}lim": (low, high)})
    axis.set_ticks(ticks, [words(tick) for tick in ticks])
    axis.set_minor_locator(NullLocator())


def _round_numbers(low: float, high: float, most: int) -> list[float]:
    """Round numbers between `low` and `high`, at most `most`; denser for a smaller range."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    for step, digits in (*_DIGITS, *((step, (1.0,)) for step in range(1, 20))):
        found = [
            digit * 10.0**power
            for power in range(first, last + 1)
            for digit in digits
            if power % step == 0 and low <= digit * 10.0**power <= high
        ]
        if len(found) <= most:
            break
    return found


def _columns(titles: Sequence[str]) -> int:
    longest = max((width(title) for title in titles), default=1.0) + 26
    return max(1, min(len(titles), int((WIDTH - 8) // longest)))


def _legend(
    figure: Figure,
    theme: Theme,
    entries: Sequence[tuple[ContestantInfo, Look]],
    columns: int,
    at: float,
) -> None:
    # Matplotlib fills a legend column by column; people read it line by line.
    order = [i for column in range(columns) for i in range(column, len(entries), columns)]
    handles = [
        Line2D([], [], linestyle="-", linewidth=1.6, label=entries[i][0].title) for i in order
    ]
    for handle, i in zip(handles, order, strict=True):
        handle.set(**entries[i][1].marks(theme))
    figure.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=(0.0, at),
        ncols=columns,
        frameon=False,
        fontsize=TEXT,
        labelcolor=theme.ink,
        handlelength=1.5,
        handletextpad=0.5,
        columnspacing=1.2,
        labelspacing=0.35,
        borderpad=0.4,
    )


def _plain(axes: Axes, theme: Theme) -> None:
    axes.set_facecolor("none")
    axes.set_axisbelow(True)
    axes.grid(visible=True, which="major", color=theme.grid, linewidth=0.8)
    axes.tick_params(which="both", length=0, labelsize=TEXT, labelcolor=theme.muted, pad=5)
    for spine in axes.spines.values():
        spine.set_visible(False)

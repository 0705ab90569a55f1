"""The plots of a report, drawn by matplotlib: needs the extra `bench`.

Raises:
    ModuleNotFoundError: on import, if matplotlib or pillow is not installed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from rnnjit.runtime.packages import absent

try:
    import matplotlib  # noqa: F401
except ImportError as error:
    raise absent("matplotlib", "bench", "a plot") from error
try:
    import PIL  # noqa: F401
except ImportError as error:
    raise absent("pillow", "bench", "a plot") from error

from rnnjit.bench.models.records import ModelReport
from rnnjit.bench.records import Report
from rnnjit.bench.report.plots import cold_start, models, roofline, scaling, shapes
from rnnjit.bench.report.plots.render import Plot
from rnnjit.bench.report.plots.style import THEMES
from rnnjit.bench.report.results import Results

__all__ = ["Chapter", "Plot", "chapters", "write_plots"]


class Chapter(NamedTuple):
    """The plots of one kind.

    Attributes:
        key: an identifier.
        title: the heading.
        plots: the plots; empty if the report lacks the data.
        lacking: the message for that case.
    """

    key: str
    title: str
    plots: tuple[Plot, ...]
    lacking: str


_ALL: tuple[tuple[str, str, Callable[[Results], Iterable[Plot]], str], ...] = (
    (
        "speedup",
        "Speed-up by shape",
        shapes.speedups,
        "No shape was timed on eager and on anyone else.",
    ),
    (
        "scaling",
        "Scaling",
        scaling.plots,
        "This run has no cases in which T, B, H or the number of threads alone grows.",
    ),
    (
        "roofline",
        "Roofline",
        roofline.plots,
        "This run did not measure the machine's multiply-adds and bandwidths for its cases.",
    ),
    (
        "cold-start",
        "Cold start",
        cold_start.plots,
        "This run has no first calls of new processes.",
    ),
    ("memory", "Memory", shapes.memory, "This run did not measure memory."),
)


def chapters(report: Report) -> tuple[Chapter, ...]:
    """All plots of a report, by chapter; a plot is drawn only when it is rendered."""
    results = Results(report)
    return tuple(
        Chapter(key, title, tuple(plots(results)), lacking) for key, title, plots, lacking in _ALL
    )


def _plots(report: Report | ModelReport) -> Iterable[Plot]:
    if isinstance(report, ModelReport):
        return models.plots(report)
    return [plot for chapter in chapters(report) for plot in chapter.plots]


def write_plots(
    report: Report | ModelReport, folder: str | Path, *, only: Sequence[str] | None = None
) -> list[Path]:
    """Write each plot as `KEY.svg` and `KEY.png`, and with `-dark` for dark backgrounds.

    Args:
        report: the report.
        folder: the directory, created if it does not exist.
        only: prefixes of the keys of plots, such as "speedup"; None for all.

    Returns:
        The files, in the order of the plots.

    Raises:
        OSError: a file cannot be written.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for plot in _plots(report):
        if only is not None and not plot.key.startswith(tuple(only)):
            continue
        for name, theme in THEMES.items():
            stem = plot.key if name == "light" else f"{plot.key}-{name}"
            svg, png = folder / f"{stem}.svg", folder / f"{stem}.png"
            svg.write_text(plot.svg(theme), encoding="utf-8")
            png.write_bytes(plot.png(theme))
            written += [svg, png]
    return written

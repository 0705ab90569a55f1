"""Renders a report as one self-contained HTML page: no network, readable without scripts."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import NamedTuple

import msgspec

from rnnjit.runtime.packages import absent

try:
    from jinja2 import Environment, PackageLoader, StrictUndefined
except ImportError as error:
    raise absent("jinja2", "bench", "the page of a report") from error

from rnnjit.bench.records import Report
from rnnjit.bench.report import findings, rows, tables
from rnnjit.bench.report.plots import chapters
from rnnjit.bench.report.plots.render import Plot, css_variables
from rnnjit.bench.report.plots.style import LIGHT, THEMES, Theme, looks
from rnnjit.bench.report.results import Results, described, duration, layer_words, size, times


class Picture(NamedTuple):
    """A plot as inline SVG, and as files to save."""

    key: str
    title: str
    inline: str
    svg: str
    png: str


def write_html(report: Report, path: str | Path) -> None:
    """Write the page of a report: means, tables, plots, the machine, and what was not timed.

    Colours follow the reader's light or dark theme. All strings from contestants and the machine
    are escaped.

    Raises:
        OSError: `path` cannot be written.
    """
    Path(path).write_text(page(report), encoding="utf-8")


def page(report: Report) -> str:
    """The page that `write_html` writes."""
    results = Results(report)
    environment = Environment(
        loader=PackageLoader("rnnjit.bench.report", "page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        times=times,
        duration=duration,
        size=size,
        case=tables.case_words,
        shape=described,
        layer=layer_words,
        setting=tables.setting,
        rate=lambda value: f"{value / 1e9:.3g}",
    )
    return environment.get_template("report.html").render(
        report=report,
        themes={name: _declarations(theme) for name, theme in THEMES.items()},
        swatches=_swatches(report),
        baseline=results.named(results.baseline),
        means=findings.means(results),
        exactness=findings.exactness(results),
        contestants=results.contestants,
        faster=findings.faster(results),
        untimed=findings.untimed(results),
        absent=[contestant for contestant in report.contestants if contestant.absent],
        shape_tables=tables.shape_tables(results),
        sweep_tables=tables.sweep_tables(results),
        chapters=[(chapter, [*map(_picture, chapter.plots)]) for chapter in chapters(report)],
        csv=_data_uri("text/csv", rows.as_csv(report).encode()),
        json=_data_uri("application/json", msgspec.json.encode(report)),
    )


def _picture(plot: Plot) -> Picture:
    svg = plot.svg()
    return Picture(
        plot.key,
        plot.title,
        plot.inline(svg),
        _data_uri("image/svg+xml", svg.encode()),
        _data_uri("image/png", plot.png()),
    )


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _declarations(theme: Theme) -> str:
    """A theme as CSS variables."""
    colours = {name: getattr(theme, name) for name in theme._fields if name != "series"}
    colours |= {f"series-{i}": colour for i, colour in enumerate(theme.series)}
    return " ".join(f"--{name}: {colour};" for name, colour in colours.items())


def _swatches(report: Report) -> dict[str, str]:
    """The variable that holds each contestant's colour in the plots."""
    variables = css_variables()
    return {name: variables[look.colour] for name, look in looks(report, LIGHT).items()}

"""Renders plots: inline SVG for a page with themes, and SVG and PNG files."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from html import escape

import matplotlib.style
from matplotlib.figure import Figure
from PIL import Image

from rnnjit.bench.report.plots.style import LIGHT, Theme

_RESOLUTION = 144
_FONTS = "system-ui, 'Segoe UI', Roboto, Helvetica, Arial, sans-serif"


@dataclass(frozen=True)
class Plot:
    """One picture.

    Attributes:
        key: prefix of its files and ids; letters, digits and hyphens.
        title: what it shows; also the text for screen readers.
        draw: draws the figure in the colours of a theme.
    """

    key: str
    title: str
    draw: Callable[[Theme], Figure]

    def png(self, theme: Theme = LIGHT) -> bytes:
        """The plot as a PNG picture."""
        drawn, file = io.BytesIO(), io.BytesIO()
        with _settings(self.key):
            self.draw(theme).savefig(drawn, format="png")
        # A plot has few colours, so a palette reduces it to a quarter of the bytes.
        Image.open(drawn).convert("RGB").quantize(128).save(file, "png")
        return file.getvalue()

    def svg(self, theme: Theme = LIGHT) -> str:
        """The plot as a standalone SVG file; deterministic."""
        file = io.StringIO()
        with _settings(self.key):
            metadata = {"Date": None, "Title": self.title, "Creator": "rnnjit"}
            self.draw(theme).savefig(file, format="svg", metadata=metadata)
        return re.sub(
            r"font: ([^;\"]*?)([\d.]+px) [^;\"]*", rf"font: \1\2 {_FONTS}", file.getvalue()
        )

    def inline(self, svg: str) -> str:
        """An `<svg>` element for an HTML page, whose colours are the page's CSS variables.

        The variables are `--surface`, `--ink`, `--muted`, `--grid`, `--baseline`, `--series-0`...

        Args:
            svg: the result of `svg` in the light theme.
        """
        # Removes the XML declarations and metadata, which are invalid in HTML.
        text = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
        # All matplotlib figures use the same ids for groups, but ids must be unique in a page.
        text = re.sub(r'<g id="([\w.]+?)_\d+"', r'<g class="\1"', text)
        text = re.sub(r"<title>.*?</title>", "", text, flags=re.DOTALL)
        text = text.replace("<svg ", f'<svg role="img" aria-label="{escape(self.title)}" ', 1)
        for colour, variable in css_variables().items():
            text = text.replace(colour, f"var({variable})")
        return text


def css_variables() -> dict[str, str]:
    """The CSS variable for every colour of the light theme, in which inline plots are drawn."""
    named = {getattr(LIGHT, name): f"--{name}" for name in LIGHT._fields if name != "series"}
    return named | {colour: f"--series-{i}" for i, colour in enumerate(LIGHT.series)}


def _settings(key: str) -> AbstractContextManager[None]:
    """Fixed matplotlib settings, regardless of the user's; ids are specific to the plot."""
    own = {
        "svg.fonttype": "none",
        "text.parse_math": False,
        "svg.hashsalt": key,
        "savefig.dpi": _RESOLUTION,
        "figure.dpi": _RESOLUTION,
    }
    return matplotlib.style.context(["default", own])

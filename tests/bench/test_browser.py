"""Protects a report's page in a real browser: every plot, in both themes, on any screen."""

import bench_report
import numpy as np
import pytest
from chromium import PROGRAM, browser

from rnnjit.bench.report.plots.style import THEMES, looks

pytestmark = [
    pytest.mark.full,
    pytest.mark.skipif(PROGRAM is None, reason="there is no browser: apt-get install chromium"),
]

BOXES = """
[...document.querySelectorAll("figure svg")].map((svg) => {
  const box = (element) => {
    const {left, top, right, bottom} = element.getBoundingClientRect();
    return [left + scrollX, top + scrollY, right + scrollX, bottom + scrollY];
  };
  return {
    key: svg.parentElement.id,
    whole: box(svg),
    axes: box(svg.querySelector(".axes")),
    texts: [...svg.querySelectorAll("text")].map((text) => {
      const turned = /rotate\\(([-.\\d]+)/.exec(text.getAttribute("transform"));
      return [text.textContent, box(text), turned === null ? 0 : Number(turned[1])];
    }),
  };
})
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(bench_report.full_page(), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def window():
    with browser() as page:
        yield page


@pytest.fixture(scope="module", params=[1280, 390], ids=["desktop", "telephone"])
def screen(request):
    return request.param


@pytest.fixture(scope="module", params=["light", "dark"])
def shown(request, window, screen, file):
    window.open(file, width=screen, dark=request.param == "dark")
    return window.evaluate(BOXES), window.picture(), request.param


def near(picture, colour):
    """How many pixels have almost this colour."""
    value = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
    return int((np.abs(picture.astype(np.int16) - value).max(axis=-1) <= 20).sum())


def test_every_contestant_of_every_plot_is_seen_in_its_colour(shown, window):
    boxes, picture, name = shown
    look = looks(bench_report.report(), THEMES[name])
    titles = {c.title: look[c.name].colour for c in bench_report.CONTESTANTS if not c.absent}
    assert len(boxes) == 19
    for plot in boxes:
        left, top, right, bottom = (round(edge * window.scale) for edge in plot["axes"])
        axes = picture[top:bottom, left:right]
        present = [title for title, *_ in plot["texts"] if title in titles]
        assert len(present) >= 4, plot["key"]
        for title in present:
            assert near(axes, titles[title]) >= 4, (plot["key"], title)


def test_the_background_is_the_theme_s(shown):
    _, picture, name = shown
    assert "#" + bytes(picture[2, 2]).hex() == THEMES[name].surface
    sample = picture[::8, ::8]
    assert near(sample, THEMES[name].surface) > sample.shape[0] * sample.shape[1] / 2


def test_no_text_of_a_plot_is_cut_off_or_lies_upon_another(shown):
    boxes, *_ = shown
    for plot in boxes:
        left, top, right, bottom = plot["whole"]
        for text, (x0, y0, x1, y1), _ in plot["texts"]:
            assert left <= x0 < x1 <= right, (plot["key"], text)
            assert top <= y0 < y1 <= bottom, (plot["key"], text)
        level = [(text, box) for text, box, angle in plot["texts"] if angle == 0]
        for i, (text, a) in enumerate(level):
            for other, b in level[:i]:
                across = min(a[2], b[2]) - max(a[0], b[0])
                down = min(a[3], b[3]) - max(a[1], b[1])
                # Boxes have room for accents above, and for what hangs below a line.
                assert across <= 1 or down <= 0.4 * (a[3] - a[1]), (plot["key"], text, other)


def test_the_text_of_a_plot_is_legible(shown):
    boxes, *_ = shown
    for plot in boxes:
        for text, (_, top, _, bottom), angle in plot["texts"]:
            assert angle or bottom - top >= 9, (plot["key"], text)


def test_nothing_is_wider_than_the_screen(shown, window, screen):
    assert window.evaluate("document.documentElement.scrollWidth") <= screen
    assert window.evaluate("innerWidth") == screen


def test_nothing_is_asked_for_and_no_script_fails(shown, window, file):
    assert set(window.requests) == {file.as_uri()}
    assert window.errors == []


FIRST = 'document.querySelector("#tables tbody")'
COLUMN = f"[...{FIRST}.rows].map((row) => row.cells[6].firstChild.textContent)"
CLICK = 'document.querySelector("#tables thead").rows[0].cells[{}].firstChild.click()'


def test_tables_are_sorted_by_a_click_and_without_scripts_stay_as_they_are(window, file):
    window.open(file, width=1280, dark=False)
    before = window.evaluate(COLUMN)
    assert before == ["0.79x", "0.61x", "0.79x", "0.79x", "0.61x", "failed", "0.69x"]
    window.evaluate(CLICK.format(6))
    largest = ["0.79x", "0.79x", "0.79x", "0.69x", "0.61x", "0.61x", "failed"]
    assert window.evaluate(COLUMN) == largest
    window.evaluate(CLICK.format(6))
    assert window.evaluate(COLUMN) == [*largest[-2::-1], "failed"]
    window.evaluate(CLICK.format(0))
    assert window.evaluate(COLUMN) == before
    window.open(file, width=1280, dark=False, script=False)
    assert window.evaluate(COLUMN) == before
    assert window.evaluate('document.querySelectorAll("thead button").length') == 0

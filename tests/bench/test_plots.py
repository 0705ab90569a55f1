"""Protects the plots of reports with known numbers: their content and their files."""

import importlib
import re
import sys
from pathlib import Path
from xml.etree import ElementTree

import bench_report
import matplotlib
import msgspec
import numpy as np
import pictures
import pytest
from PIL import Image

from rnnjit.bench.records import Measurement
from rnnjit.bench.report.plots import chapters, style, write_plots
from rnnjit.bench.report.plots.render import css_variables
from rnnjit.bench.report.plots.style import DARK, LIGHT


@pytest.fixture(scope="module")
def plots():
    return {plot.key: plot for chapter in chapters(bench_report.report()) for plot in chapter.plots}


def drawn(plot, theme=LIGHT):
    """(colour, x, y) of every line of the plot's axes, in data coordinates."""
    (axes,) = plot.draw(theme).axes
    return [(line.get_color(), *map(list, line.get_data())) for line in axes.lines]


def colours(theme=LIGHT):
    looks = style.looks(bench_report.report(), theme)
    return {looks[name].colour: name for name in bench_report.RATIOS}


@pytest.mark.parametrize("theme", [LIGHT, DARK])
def test_the_speed_up_of_every_shape_stands_at_its_ratio(plots, theme):
    shapes = bench_report.SHAPES
    found = {
        (colours(theme)[colour], shapes[round(y)]): x
        for colour, (x, *more), (y, *_) in drawn(plots["speedup-forward-float32-2"], theme)
        if colour in colours(theme) and not more
    }
    expected = {}
    for name in bench_report.RATIOS:
        for shape in shapes:
            case = bench_report.case(shape, mode="forward", threads=2)
            if name != "eager" and bench_report.measurement(name, case).verdict == "right":
                expected[name, shape] = bench_report.ratio(name, case)
    assert found == pytest.approx(expected, rel=1e-12)
    assert len(expected) == 7 * 7 - 3  # a failed, a wrong and an absent one


def test_a_sweep_is_a_line_through_the_medians(plots):
    lines = {colours()[c]: (x, y) for c, x, y in drawn(plots["scaling-T-forward-0"])}
    assert set(lines) == set(bench_report.RATIOS)
    assert lines["jax"][0] == [1, 10, 100]  # wrong at 1000
    for name, (Ts, medians) in lines.items():
        cases = [bench_report.case((T, 16, 64, 128), mode="forward", group="T") for T in Ts]
        expected = [bench_report.measurement(name, case).p50 for case in cases]
        assert medians == expected


def test_the_roof_is_the_measured_peak_and_marks_are_operations_by_time(plots):
    peak, *_ = [y for c, x, y in drawn(plots["roofline-forward-float32-2"]) if c == LIGHT.ink]
    assert peak == [2e11, 2e11]
    case = bench_report.case((20, 128, 1024, 1024), mode="forward", threads=2)
    rate = 2 * 20 * 128 * 2048 * 1024 / bench_report.measurement("numba", case).p50
    marks = [y[0] for c, x, y in drawn(plots["roofline-forward-float32-2"]) if c == LIGHT.series[0]]
    assert any(mark == pytest.approx(rate, rel=1e-12) for mark in marks)


def test_a_cold_start_is_a_bar_for_each_the_quickest_first(plots):
    (axes,) = plots["cold-start-0"].draw(LIGHT).axes
    titles = [label.get_text() for label in axes.get_yticklabels()]
    assert titles[:3] == ["eager PyTorch", "numba", "tvm"]
    bars = [bar.get_width() for bar in axes.patches]
    assert bars == pytest.approx(
        [0.02, *sorted(4 / r for name, r in bench_report.RATIOS.items() if name != "eager")]
    )


def test_memory_is_in_mib(plots):
    found = [
        x for c, x, y in drawn(plots["memory-forward-float32-2"]) if colours().get(c) == "eager"
    ]
    expected = [T * B * H * 1600 / 2**20 for T, B, _, H in bench_report.SHAPES]
    assert [x for (x,) in found] == pytest.approx(expected)


def test_no_growth_of_memory_is_drawn_as_a_page_and_marks_lie_side_by_side():
    case = bench_report.case((1, 1, 1, 1))
    names = list(bench_report.RATIOS)[:5]
    none = [Measurement(contestant=name, case=case, p50=1.0, memory=0) for name in names]
    found = chapters(bench_report.report(measurements=tuple(none)))[-1].plots[0]
    marks = [(x, y) for c, x, y in drawn(found) if c in colours()]
    assert [x for x, _ in marks] == [[1 / 256]] * 5
    assert len({y for _, (y,) in marks}) == 5


def test_titles_say_what_is_better(plots):
    for plot in plots.values():
        text = " ".join(text.get_text() for text in plot.draw(LIGHT).texts)
        assert re.search(
            r"(further right|further left|lower|shorter|nearer to the roof) is better", text
        )


def test_what_a_report_lacks_is_said():
    found = {chapter.key: chapter for chapter in chapters(bench_report.report(full=False))}
    assert [key for key, chapter in found.items() if not chapter.plots] == [
        "scaling", "roofline", "cold-start",
    ]  # fmt: skip
    assert all(chapter.lacking.endswith(".") for chapter in found.values())
    empty = chapters(bench_report.report(measurements=()))
    assert not any(chapter.plots for chapter in empty)


def test_the_files_of_a_plot_are_pictures_and_come_out_the_same(plots, tmp_path):
    report = bench_report.report()
    written = write_plots(report, tmp_path / "new" / "folder", only=["cold-start-0"])
    assert [path.name for path in written] == [
        "cold-start-0.svg", "cold-start-0.png", "cold-start-0-dark.svg", "cold-start-0-dark.png",
    ]  # fmt: skip
    for svg, png, theme in ((*written[:2], LIGHT), (*written[2:], DARK)):
        root = ElementTree.fromstring(svg.read_text())
        text = " ".join(root.itertext())
        assert "onnxruntime" in text
        assert theme.series[0] in svg.read_text()
        pixels = np.asarray(Image.open(png).convert("RGB"))
        assert "#" + bytes(pixels[0, 0]).hex() == theme.surface
        assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 20
    before = [path.read_bytes() for path in written]
    with matplotlib.rc_context({"font.size": 40, "axes.facecolor": "red", "lines.marker": "x"}):
        after = [path.read_bytes() for path in write_plots(report, tmp_path, only=["cold-start-0"])]
    assert before == after


def test_dollars_and_angles_in_titles_are_text():
    contestants = [
        msgspec.structs.replace(c, title=f"$\\frac{{{c.name}}}$ <&>")
        for c in bench_report.CONTESTANTS
    ]
    case = bench_report.case((1, 1, 1, 1))
    times = [Measurement(contestant=name, case=case, p50=1.0) for name in ("eager", "numba")]
    report = bench_report.report(contestants=tuple(contestants), measurements=tuple(times))
    text = chapters(report)[0].plots[0].svg()
    assert "$\\frac{numba}$ <&>" in " ".join(ElementTree.fromstring(text).itertext())


def luminance(colour):
    values = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in values]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("theme", [LIGHT, DARK])
def test_text_and_marks_stand_out_from_the_background(theme):
    def contrast(colour):
        lighter, darker = sorted([luminance(colour), luminance(theme.surface)], reverse=True)
        return (lighter + 0.05) / (darker + 0.05)

    # What the Web Content Accessibility Guidelines ask of text, and of what else is to be seen.
    assert min(map(contrast, (theme.ink, theme.muted))) >= 4.5
    assert min(map(contrast, (theme.baseline, *theme.series))) >= 3.0


def test_contestants_keep_their_looks_and_no_two_look_alike():
    report = bench_report.report()
    few = bench_report.report(measurements=report.measurements[-1:])
    assert style.looks(report, LIGHT) == style.looks(few, LIGHT)
    marks = [(look.colour, look.marker) for look in style.looks(report, LIGHT).values()]
    assert len(set(marks)) == len(marks)
    assert len(css_variables()) == 5 + len(LIGHT.series)


def test_without_matplotlib_the_plots_say_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for name in [name for name in sys.modules if name.startswith("rnnjit.bench.report.plots")]:
        monkeypatch.delitem(sys.modules, name)
    said = "a plot needs matplotlib, which is not installed: pip install 'matplotlib>=3.9'"
    with pytest.raises(ImportError, match=re.escape(said)):
        importlib.import_module("rnnjit.bench.report.plots")


def test_the_script_draws_pictures_of_a_report_file(tmp_path, capsys):
    report = tmp_path / "report.json"
    report.write_bytes(msgspec.json.encode(bench_report.report()))
    arguments = [str(report), "-o", str(tmp_path), "--only", "cold-start-1"]
    assert pictures.main(arguments) == 0
    names = [Path(line).name for line in capsys.readouterr().out.splitlines()]
    assert sorted(names) == sorted(path.name for path in tmp_path.glob("cold-start-1*"))
    assert len(names) == 4
    report.write_text("{}")
    assert pictures.main(arguments) == 2
    message = capsys.readouterr().err
    assert message.startswith(str(report))
    assert "missing required field" in message

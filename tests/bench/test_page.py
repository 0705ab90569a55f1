"""Protects the HTML page of a report: complete, safe, and with all findings."""

import base64
import re
from html.parser import HTMLParser

import bench_report
import msgspec
import pytest

from rnnjit.bench.records import Report
from rnnjit.bench.report.html import page, write_html
from rnnjit.bench.report.plots.style import DARK, LIGHT
from rnnjit.bench.report.rows import as_csv

VOID = {"meta", "link", "br", "hr", "img", "input"}


class Reader(HTMLParser):
    """Reads a page, with an error for an element that is not closed or closed twice."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.text = [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        assert len(dict(attributes)) == len(attributes), f"an attribute twice: {attributes}"
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("script", "style"):
            self.text.append(data)

    def of(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def full():
    return bench_report.full_page()


@pytest.fixture(scope="module")
def read(full):
    return Reader(full)


@pytest.fixture(scope="module")
def quick():
    return Reader(page(bench_report.report(full=False)))


def test_every_element_is_closed_and_every_id_is_there_once(read):
    ids = [attributes["id"] for _, attributes in read.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = [a["href"][1:] for a in read.of("a") if a["href"].startswith("#")]
    assert set(links) <= set(ids)
    assert len(links) == 12


def test_nothing_is_loaded_from_anywhere(full, read):
    for tag, attributes in read.elements:
        for name in ("src", "href", "xlink:href", "srcset", "data", "action"):
            if attributes.get(name) is not None:
                assert attributes[name].startswith(("#", "data:")), (tag, attributes[name][:80])
    assert not re.search(r"@import|url\((?!#)", full)
    without = re.sub(r'xmlns(:\w+)?="[^"]*"|base64,[\w+/=]*', "", full)
    assert "http" not in without


def test_what_contestants_and_machines_say_is_text(full, read):
    assert len(read.of("script")) == 1
    assert "<script>alert" not in full
    said = " ".join(read.text)
    assert f"Imaginary 9000 {bench_report.HOSTILE}" in said
    assert f"no packed batches: {bench_report.HOSTILE}" in said
    hints = [td.get("title", "") for td in read.of("td")]
    assert f"no packed batches: {bench_report.HOSTILE}" in hints


def test_both_themes_are_there_and_plots_take_their_colours_from_them(full):
    for theme in (LIGHT, DARK):
        for colour in (theme.surface, theme.ink, theme.muted, theme.grid, *theme.series):
            assert colour in full
    light, dark = full.index(LIGHT.series[0]), full.index(DARK.series[0])
    assert light < full.index("@media (prefers-color-scheme: dark)") < dark
    figures = full[full.index("<figure") :]
    inline = re.sub(r"base64,[\w+/=]*", "", figures)
    assert "var(--series-0)" in inline
    assert not set(re.findall(r"#[0-9a-f]{6}\b", inline)) & {*LIGHT.series, LIGHT.ink, LIGHT.grid}


def rows(text, caption):
    """The cells of a table, as text, by the first of their row."""
    body = text[text.index(f"<caption>{caption}</caption>") :]
    body = body[: body.index("</table>")]
    found = {}
    for row in re.findall(r"<tr>(.*?)</tr>", body, flags=re.DOTALL):
        cells = re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, flags=re.DOTALL)
        first, *rest = [re.sub(r"<[^>]*>", " ", cell).split() for cell in cells]
        found[" ".join(first)] = [" ".join(cell) for cell in rest]
    return found


def test_the_table_leads_with_the_ratio_and_ends_with_eager(full):
    found = rows(full, "forward, float32, 2 threads")
    assert found["T, B, I, H"] == [
        "numba", "tvm", "inductor", "onnxruntime", "OpenVINO", "torch.compile", "JAX",
        "eager PyTorch",
    ]  # fmt: skip
    # 30 us and a thousandth of eager, as the report was made: 1e-5 a step and 2e-5 a call.
    assert found["1, 1, 32, 64"][0].startswith("0.90x ")
    assert found["100, 1, 64, 64"][:2] == ["4.0x 263 µs", "3.0x 351 µs"]
    assert found["100, 1, 64, 64"][-1] == "1.04 ms"


def test_where_there_is_no_time_the_verdict_stands_in_the_cell(full):
    found = rows(full, "forward, float32, 2 threads")
    assert found["20, 128, 1024, 1024"][5] == "failed"
    assert found["1000, 16, 64, 128"][6] == "wrong"
    assert found["5, 32, 10, 20"][2] == "absent"
    assert rows(full, "training, float32, 2 threads")["1, 1, 32, 64"][3] == "declined"


def test_a_cell_says_more_when_it_is_pointed_at(read):
    hints = [td.get("title", "") for td in read.of("td")]
    spread = "p20 250 µs, p80 290 µs; 15 samples of 10 calls; "
    (hint,) = {hint for hint in hints if hint.startswith(spread)}
    _, _, bound, *rest = hint.split("; ")
    assert bound == "3% of the machine's limit, bound by steps"
    assert rest == ["largest error 2.0e-07 (eager 3.0e-07)", "first call 500 ms", "memory 6.84 MiB"]


def test_a_cold_start_is_told_by_its_time(full):
    found = rows(full, "cold start, float32, 1 thread")
    assert found["100, 16, 64, 128 empty cache"][:2] == ["1 s", "1.33 s"]


def test_peers_that_are_faster_are_told_in_words(read):
    said = " ".join(" ".join(read.text).split())
    start = said.index("Where a peer is faster", said.index("Means Geometric"))
    told = said[start : said.index("Every shape")]
    assert "20, 128, 1024, 1024 forward, float32, 2 threads onnxruntime 2.9x numba yes" in told
    assert "in 6 cases" in told


def test_the_data_can_be_saved_from_the_page(read):
    report = bench_report.report()
    saved = {a["download"]: a["href"] for a in read.of("a") if "download" in a}
    content = {name: base64.b64decode(uri.split(",")[1]) for name, uri in saved.items()}
    assert content["rnnjit-full.csv"].decode() == as_csv(report)
    assert msgspec.json.decode(content["rnnjit-full.json"], type=Report) == report
    pictures = [name for name in saved if not name.startswith("rnnjit")]
    assert len(pictures) == 2 * len(read.of("figure")) == 2 * 19
    for name in pictures:
        assert content[name].startswith(b"\x89PNG" if name.endswith("png") else b"<?xml")


def test_what_a_run_did_not_measure_is_said(quick):
    said = " ".join(quick.text)
    assert "This run has no cases in which T, B, H or the number of threads alone grows." in said
    assert len(quick.of("figure")) == 4


def test_a_run_that_was_interrupted_before_anything_was_measured_has_a_page(tmp_path):
    write_html(bench_report.report(measurements=(), complete=False), tmp_path / "page.html")
    said = " ".join(Reader((tmp_path / "page.html").read_text(encoding="utf-8")).text)
    assert "This run was interrupted" in said
    assert "No shape was timed." in said
    assert "Nowhere in this run." in said


def test_the_command_that_made_it_is_there(read):
    assert "rnnjit bench --preset full --rounds 9" in read.text

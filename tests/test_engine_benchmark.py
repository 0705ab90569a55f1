"""The script that measures the CPU engine's table, on a few rows."""

import json
import math
import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest
from measures.pairs import BOTH, FORWARD, operations
from measures.report import Finding
from measures.spread import random_shapes
from torch import nn

ROOT = Path(__file__).parent.parent
BARS = {
    "machine": 0,
    "grid": 2,
    "step": 1,
    "packed": 4,
    "memory": 2,
}


def run_script(*arguments):
    command = [sys.executable, ROOT / "benchmarks" / "engine.py", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """What a quick run of a few rows prints and writes."""
    file = tmp_path_factory.mktemp("engine") / "table.json"
    done = run_script("--quick", "--threads", "1", "--only", ",".join(BARS), "--json", file)
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads(file.read_text())


def test_every_row_is_printed_and_written(measured):
    printed, data = measured
    assert list(data["rows"]) == list(BARS)
    assert all(f"{name}: " in printed for name in BARS)
    assert data["environment"]["threads"] == 1
    assert data["counts"]["bars"] == sum(BARS.values())
    assert f"{data['counts']['met']} of {sum(BARS.values())} bars met" in printed


def test_figures_are_positive_and_judged_by_their_bars(measured):
    for name, row in measured[1]["rows"].items():
        findings = row["findings"]
        assert sum(finding["bar"] is not None for finding in findings) == BARS[name]
        for finding in findings:
            assert 0 < finding["measured"] < math.inf
            value, bar = finding["measured"], finding["bar"]
            if bar is None:
                assert finding["met"] is None
            else:
                assert finding["met"] == (value <= bar if finding["at_most"] else value >= bar)


def test_records_carry_their_figures(measured):
    rows = measured[1]["rows"]
    for row in rows.values():
        assert row["records"]
        figures = [v for record in row["records"] for v in record.values() if isinstance(v, float)]
        assert figures
        assert min(figures) > 0
    for record in rows["grid"]["records"]:
        times = record["times"]
        assert record["ratio"] == pytest.approx(
            times["eager"]["median"] / times["rnnjit"]["median"]
        )


def test_the_operations_of_a_pass_are_counted_from_its_shape(measured):
    (record,) = (
        record
        for record in measured[1]["rows"]["grid"]["records"]
        if record["T, B, I, H"] == "100, 8, 128, 256" and record["pass"] == "forward"
    )
    operations = 2 * 100 * 8 * 256 * (128 + 256)
    assert record["GFLOP/s"] == pytest.approx(operations / record["rnnjit_ms"] * 1e-6)


def test_every_layer_and_direction_counts_among_the_operations():
    rnn = nn.RNN(3, 5, num_layers=2, bidirectional=True)
    matrices = sum(p.numel() for p in rnn.parameters() if p.dim() == 2)
    assert operations(rnn, 7, FORWARD) == 7 * 2 * matrices
    assert operations(rnn, 7, BOTH) == 3 * operations(rnn, 7, FORWARD)


def test_random_shapes_repeat_and_keep_to_their_bounds():
    first, second = (list(islice(random_shapes(seed=3), 500)) for _ in range(2))
    assert first == second
    assert first != list(islice(random_shapes(seed=4), 500))
    for sizes, most in zip(zip(*first, strict=True), (2000, 256, 2048, 2048), strict=True):
        assert min(sizes) == 1
        assert most / 2 < max(sizes) <= most


@pytest.mark.parametrize(
    ("measured", "bar", "at_most", "met"),
    [
        (6.0, 6.0, False, True),
        (5.9, 6.0, False, False),
        (1.1, 1.1, True, True),
        (1.2, 1.1, True, False),
        (5.0, None, False, None),
    ],
)
def test_a_bar_is_met_at_the_bar(measured, bar, at_most, met):
    assert Finding("row", "what", measured, "x", bar, at_most).met is met


def test_an_unknown_row_is_named():
    done = run_script("--only", "grid,speed")
    assert done.returncode == 2
    assert "no rows ['speed']" in done.stderr

"""Protects the CPU engine's table: figures from reports with known times, and a quick run."""

import subprocess
import sys

import bench_report
import engine
import pytest
from engine import ROWS, Finding, Measured, judged
from folders import ROOT

from rnnjit.bench.arrays import lengths_of
from rnnjit.bench.records import Measurement, read
from rnnjit.bench.roofline import work

THREADS = (1,)


def figures(row, own, eager=lambda case: 1.0, cell="rnn", **fields):
    """What a row finds where the backend takes `own` seconds and eager `eager`."""
    cases = ROWS[row].cases(THREADS, quick=False, cell=cell)
    measurements = [
        Measurement(contestant=name, case=case, p50=seconds(case), **fields)
        for name, seconds in (("eager", eager), ("numba", own))
        for case in cases
    ]
    report = bench_report.report(measurements=tuple(measurements))
    return {each.what: each for each in judged(ROWS[row], Measured(report), cases)}


def test_means_of_the_grid_are_geometric():
    found = figures("grid", lambda case: 0.125 if case.B > 1 else 0.5)
    mean = (8**7 * 2**4) ** (1 / 11)
    assert found["forward, geometric mean of the grid"].measured == pytest.approx(mean)
    assert len(found) == 2


def test_the_share_of_the_peak_is_in_percent():
    found = figures("compute", lambda case: work(case).flops / 0.8e11)
    measured = {each.measured: each.met for each in found.values()}
    assert list(measured) == pytest.approx([80.0] * len(measured))
    assert [each.met for each in found.values()] == [False, False, True, True]


def test_a_step_of_one_row_is_held_against_reading_the_weights():
    rates = {b.level: b.rate for b in bench_report.MACHINE.bandwidths if b.threads == 1}

    def seconds(case):
        # Twice the time of reading W_hh from where it fits, and what a call costs beside its steps.
        level = "L2" if 4 * case.H * case.H <= 1 << 20 else "L3"
        return 1e-3 + 2 * case.T * 4 * case.H * case.H / rates[level]

    found = figures("single", seconds)
    shares = [each.measured for what, each in found.items() if "share" in what]
    assert shares == pytest.approx([50.0] * 5)
    assert found["forward (100, 1, 64, 64)"].bar is None


def test_a_loss_on_the_last_state_is_compared_with_eagers():
    found = figures("last", lambda case: 0.25 if case.mode == "last state" else 1.0)
    assert [each.measured for each in found.values()] == [4.0]


def test_packed_time_is_by_valid_row():
    found = figures(
        "packed", lambda case: float(lengths_of(case).sum()) * (2 if case.packed else 1)
    )
    assert found["forward: packed time per valid row over dense, most"].measured == 2.0


def test_other_kinds_are_held_against_the_plain_one_and_float64_against_half_its_speed():
    def own(case):
        return (
            0.5 * (1.0 if case.nonlinearity == "tanh" else 1.25) * (2 - (case.dtype == "float32"))
        )

    found = figures("variants", own)
    least = {what.partition(":")[0]: each.measured for what, each in found.items()}
    assert least["relu, forward"] == pytest.approx(80.0)
    assert least["3 layers, training"] == pytest.approx(100.0)
    assert least["float64, forward"] == pytest.approx(100.0)


def test_another_layer_has_figures_of_its_own_options_without_bars_on_its_speed():
    (forward, training) = figures("grid", lambda case: 0.25, cell="gru").values()
    assert (forward.measured, training.measured) == pytest.approx((4.0, 4.0))
    assert forward.bar is training.bar is None
    names = {
        cell: {what.partition(",")[0] for what in figures("variants", lambda case: 1.0, cell=cell)}
        for cell in ("rnn", "lstm", "gru")
    }
    common = {"bidirectional", "2 layers", "3 layers", "float64"}
    assert names["rnn"] == common | {"relu"}
    assert names["lstm"] == common | {"proj_size 64"}
    assert names["gru"] == common


def test_growth_is_the_worst_doubling_and_cliffs_are_by_work():
    found = figures("growth", lambda case: work(case).flops * (3 if case.H == 257 else 1))
    assert found["forward: most that doubling T multiplies the time by"].measured == 2.0
    edge = "forward: H=255, 256, 257 at B=1, spread of time per work"
    assert found[edge].measured == pytest.approx(200.0)
    assert found["training: B=15, 16, 17, spread of time per work"].measured == 0.0


def test_random_shapes_that_are_slower_are_counted():
    found = figures("any", lambda case: 2.0 if case.T == 1 else 0.5)
    slow = sum(case.T == 1 and case.mode == "forward" for case in ROWS["any"].cases(THREADS, False))
    assert found["forward: slower than eager, of 208 shapes"].measured == slow > 0
    assert found["forward: least ratio"].measured == 0.5


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
    assert Finding("what", measured, bar, "x", at_most).met is met


def test_what_has_no_time_is_left_out_and_said(capsys):
    report = bench_report.report()
    assert judged(ROWS["step"], Measured(report), ROWS["step"].cases((7,), False)) == []
    assert "a streaming step: no time for 1, 1, 32, 64, streaming" in capsys.readouterr().err


def run_script(*arguments):
    command = [sys.executable, engine.__file__, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


@pytest.mark.full
def test_a_quick_run_writes_a_report_that_is_judged_alike(tmp_path):
    flags = ("--quick", "--threads", "1", "--only", "grid,step,memory")
    file = tmp_path / "report.json"
    first = run_script(*flags, "--json", file)
    assert first.returncode == 0, first.stderr
    assert {m.verdict for m in read(file).measurements} == {"right"}
    assert "of 4 bars met" in first.stdout
    assert all(f"{name}: {ROWS[name].title}" in first.stdout for name in ("grid", "step", "memory"))
    assert run_script(*flags, "--report", file).stdout == first.stdout


def test_an_unknown_row_is_named():
    done = run_script("--only", "grid,speed")
    assert done.returncode == 2
    assert "no rows ['speed']" in done.stderr

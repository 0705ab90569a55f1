"""Reports as rows: their ratios, shares and columns, and how runs are joined."""

import csv
import json

import bench_report
import msgspec
import pytest

from rnnjit.bench import table
from rnnjit.bench.records import Bandwidth, Machine, Measurement, Peak

IDENTITY = ("commit", "created", "preset", "cpu", "contestant", "T", "B", "I", "H", "layers")
IDENTITY += ("bidirectional", "nonlinearity", "packed", "dtype", "mode", "threads", "group")


@pytest.fixture(scope="module")
def rows():
    return table.rows(bench_report.report())


def one(case, machine, p50=1e-3):
    report = bench_report.report(
        machine=machine, measurements=(Measurement(contestant="eager", case=case, p50=p50),)
    )
    return table.rows(report)[0]


def test_there_is_a_row_for_every_measurement_and_all_have_the_same_columns(rows):
    report = bench_report.report()
    assert len(rows) == len(report.measurements)
    assert {tuple(row) for row in rows} == {tuple(rows[0])}
    for row, measurement in zip(rows, report.measurements, strict=True):
        case = measurement.case
        assert all(row[name] == getattr(case, name) for name in case.__struct_fields__)
        for name in ("contestant", "verdict", "reason", "p20", "p50", "p80", "error", "memory"):
            assert row[name] == getattr(measurement, name)


def test_ratios_are_those_that_the_report_was_made_with(rows):
    cases = [m.case for m in bench_report.report().measurements]
    timed = 0
    for row, case in zip(rows, cases, strict=True):
        if row["verdict"] != "right":
            assert row["ratio"] is row["p50"] is row["share_of_bound"] is None
        else:
            expected = 1 if row["contestant"] == "eager" else None
            expected = expected or bench_report.ratio(row["contestant"], case)
            assert row["ratio"] == pytest.approx(expected, rel=1e-12)
            timed += 1
    assert timed > 100


def test_versions_are_those_of_the_run_and_of_the_contestant_alone(rows):
    by_name = {row["contestant"]: row for row in rows}
    assert {row["version_torch"] for row in rows} == {"2.13.0"}
    assert by_name["onnx"]["version_onnxruntime"] == "1.22.0"
    assert by_name["numba"]["version_onnxruntime"] is None
    assert "version_flax" not in by_name["eager"]


def machine(threads=1, flops=1e12, dtype="float32", **rates):
    """A machine with a fast cache and memory, but where rates say otherwise."""
    levels = {"L1": 1 << 15, "L2": 1 << 20, "memory": 0}
    return Machine(
        cpu="",
        system="",
        cpus=2,
        isa="",
        peaks=(Peak(dtype=dtype, threads=threads, flops=flops),),
        bandwidths=tuple(
            Bandwidth(level=level, threads=threads, capacity=size, rate=rates.get(level, 1e18))
            for level, size in levels.items()
        ),
    )


@pytest.mark.parametrize(("mode", "factor"), [("forward", 1), ("training", 3)])
def test_the_share_of_the_peak_counts_two_operations_for_a_multiply_add(mode, factor):
    case = bench_report.case((10, 4, 30, 50), mode=mode, threads=2)
    flops = 2 * (10 * 4) * (30 + 50) * 50 * factor
    row = one(case, machine(threads=2), p50=flops / 0.75e12)
    assert row["share_of_peak"] == pytest.approx(0.75, rel=1e-12)
    assert row["share_of_bound"] == pytest.approx(0.75, rel=1e-12)
    assert row["bound"] == "compute"


def test_layers_and_directions_multiply_the_operations():
    case = bench_report.case((10, 4, 30, 50), layers=2, bidirectional=True, dtype="float64")
    flops = 2 * 40 * 2 * (30 + 50) * 50 + 2 * 40 * 2 * (100 + 50) * 50
    row = one(case, machine(dtype="float64"))
    assert row["share_of_peak"] == pytest.approx(flops / 1e9, rel=1e-12)


def test_a_slow_memory_binds_and_its_share_is_of_the_bytes():
    # W_hh of 256 KiB fits into the second level, and is read from there at each of 100 steps.
    case = bench_report.case((100, 1, 1, 256))
    row = one(case, machine(flops=1e15, L2=1e9), p50=0.03)
    assert row["bound"] == "L2"
    rows_of_x_and_y = 100 * 257 * 4
    expected = (100 * 256 * 256 * 4 + rows_of_x_and_y) / 1e9 / 0.03
    assert row["share_of_bound"] == pytest.approx(expected, rel=1e-12)
    assert row["share_of_peak"] < 1e-3


def test_what_a_call_costs_whatever_it_does_binds_small_calls():
    small, large = bench_report.case((1, 1, 1, 1)), bench_report.case((100, 64, 256, 256))
    flops = 2 * 100 * 64 * 512 * 256
    measurements = tuple(
        Measurement(contestant="eager", case=case, p50=p50)
        for case, p50 in ((small, 1e-4), (large, flops / 0.9e12))
    )
    report = bench_report.report(machine=machine(), measurements=measurements)
    assert [row["bound"] for row in table.rows(report)] == ["Python", "compute"]


def test_what_is_wrong_has_no_ratio_whatever_its_time():
    case = bench_report.case((1, 1, 1, 1))
    both = (
        Measurement(contestant="eager", case=case, p50=1.0),
        Measurement(contestant="numba", case=case, p50=0.5, verdict="wrong"),
    )
    assert [row["ratio"] for row in table.rows(bench_report.report(measurements=both))] == [1, None]


def test_what_was_not_measured_of_the_machine_is_left_open():
    row = one(bench_report.case((1, 1, 1, 1)), Machine(cpu="", system="", cpus=1, isa=""))
    assert row["share_of_peak"] is row["share_of_bound"] is row["bound"] is None
    row = table.rows(bench_report.report())[-1]
    assert row["mode"] == "cold start"
    assert row["share_of_peak"] is row["bound"] is None


def test_a_csv_file_holds_the_rows_to_the_last_digit(rows, tmp_path):
    table.write_csv(bench_report.report(), tmp_path / "report.csv")
    with (tmp_path / "report.csv").open(newline="", encoding="utf-8") as file:
        read = list(csv.DictReader(file))
    expected = [{k: "" if v is None else str(v) for k, v in row.items()} for row in rows]
    assert read == expected
    assert float(read[0]["p50"]) == rows[0]["p50"]


def test_a_json_file_holds_the_rows_and_null_for_what_json_has_not(rows, tmp_path):
    table.write_json(bench_report.report(), tmp_path / "report.json")
    assert json.loads((tmp_path / "report.json").read_text()) == rows
    nan = bench_report.untimed("eager", bench_report.case((1, 1, 1, 1)), "wrong", "", error=1e999)
    table.write_json(bench_report.report(measurements=(nan,)), tmp_path / "report.json")
    assert json.loads((tmp_path / "report.json").read_text())[0]["error"] is None


def test_runs_can_be_joined(tmp_path):
    first = bench_report.report()
    second = msgspec.structs.replace(first, commit="fedcba", created="2026-02-03T00:00:00+00:00")
    both = [*table.rows(first), *table.rows(second)]
    assert {tuple(row) for row in both} == {tuple(both[0])}
    keys = {tuple(row[name] for name in IDENTITY) for row in both}
    assert len(keys) == len(both)


def test_a_report_of_a_run_that_measured_nothing_has_no_rows():
    assert table.rows(bench_report.report(measurements=())) == []

"""Protects the rows of a report: their ratios, shares and columns, and how runs are joined."""

import csv

import bench_report
import msgspec
import pytest

from rnnjit.bench.records import Machine, Measurement
from rnnjit.bench.report import rows

IDENTITY = ("commit", "created", "preset", "cpu", "contestant", "T", "B", "I", "H", "layers")
IDENTITY += (
    "cell",
    "proj_size",
    "as_cell",
    "bidirectional",
    "nonlinearity",
    "packed",
    "dtype",
    "mode",
    "threads",
    "group",
)


@pytest.fixture(scope="module")
def found():
    return rows.rows(bench_report.report())


def one(case, machine, p50=1e-3):
    report = bench_report.report(
        machine=machine, measurements=(Measurement(contestant="eager", case=case, p50=p50),)
    )
    return rows.rows(report)[0]


def test_there_is_a_row_for_every_measurement_and_all_have_the_same_columns(found):
    report = bench_report.report()
    assert len(found) == len(report.measurements)
    assert {tuple(row) for row in found} == {tuple(found[0])}
    for row, measurement in zip(found, report.measurements, strict=True):
        case = measurement.case
        assert all(row[name] == getattr(case, name) for name in case.__struct_fields__)
        for name in ("contestant", "verdict", "reason", "p20", "p50", "p80", "error", "memory"):
            assert row[name] == getattr(measurement, name)


def test_ratios_are_those_that_the_report_was_made_with(found):
    cases = [m.case for m in bench_report.report().measurements]
    timed = 0
    for row, case in zip(found, cases, strict=True):
        if row["verdict"] != "right":
            assert row["ratio"] is row["p50"] is row["share_of_bound"] is None
        else:
            expected = 1 if row["contestant"] == "eager" else None
            expected = expected or bench_report.ratio(row["contestant"], case)
            assert row["ratio"] == pytest.approx(expected, rel=1e-12)
            timed += 1
    assert timed > 100


def test_versions_are_those_of_the_run_and_of_the_contestant_alone(found):
    by_name = {row["contestant"]: row for row in found}
    assert {row["version_torch"] for row in found} == {"2.13.0"}
    assert by_name["onnx"]["version_onnxruntime"] == "1.22.0"
    assert by_name["numba"]["version_onnxruntime"] is None
    assert "version_flax" not in by_name["eager"]


def test_shares_and_what_binds_are_columns():
    case = bench_report.case((100, 64, 256, 256))
    flops = 2 * 100 * 64 * 512 * 256
    row = one(case, bench_report.MACHINE, p50=flops / 0.75e11)
    assert row["share_of_peak"] == row["share_of_bound"] == pytest.approx(0.75, rel=1e-12)
    assert row["bound"] == "compute"


def test_what_a_call_costs_whatever_it_does_binds_small_calls():
    small, large = bench_report.case((1, 1, 1, 1)), bench_report.case((100, 64, 256, 256))
    flops = 2 * 100 * 64 * 512 * 256
    measurements = tuple(
        Measurement(contestant="eager", case=case, p50=p50)
        for case, p50 in ((small, 1e-4), (large, flops / 0.9e11))
    )
    report = bench_report.report(measurements=measurements)
    assert [row["bound"] for row in rows.rows(report)] == ["Python", "compute"]


def test_what_is_wrong_has_no_ratio_whatever_its_time():
    case = bench_report.case((1, 1, 1, 1))
    both = (
        Measurement(contestant="eager", case=case, p50=1.0),
        Measurement(contestant="numba", case=case, p50=0.5, verdict="wrong"),
    )
    assert [row["ratio"] for row in rows.rows(bench_report.report(measurements=both))] == [1, None]


def test_what_was_not_measured_of_the_machine_is_left_open():
    row = one(bench_report.case((1, 1, 1, 1)), Machine(cpu="", system="", cpus=1, isa=""))
    assert row["share_of_peak"] is row["share_of_bound"] is row["bound"] is None
    row = rows.rows(bench_report.report())[-1]
    assert row["mode"] == "cold start"
    assert row["share_of_peak"] is row["bound"] is None


def test_a_csv_file_holds_the_rows_to_the_last_digit(found, tmp_path):
    rows.write_csv(bench_report.report(), tmp_path / "report.csv")
    with (tmp_path / "report.csv").open(newline="", encoding="utf-8") as file:
        read = list(csv.DictReader(file))
    expected = [{k: "" if v is None else str(v) for k, v in row.items()} for row in found]
    assert read == expected
    assert float(read[0]["p50"]) == found[0]["p50"]


def test_runs_can_be_joined(tmp_path):
    first = bench_report.report()
    second = msgspec.structs.replace(first, commit="fedcba", created="2026-02-03T00:00:00+00:00")
    both = [*rows.rows(first), *rows.rows(second)]
    assert {tuple(row) for row in both} == {tuple(both[0])}
    keys = {tuple(row[name] for name in IDENTITY) for row in both}
    assert len(keys) == len(both)


def test_a_report_of_a_run_that_measured_nothing_has_no_rows():
    assert rows.rows(bench_report.report(measurements=())) == []

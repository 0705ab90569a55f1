"""Protects the summary of a report, for reports with known numbers."""

import bench_report
import pytest

from rnnjit.bench.records import Measurement
from rnnjit.bench.report import findings
from rnnjit.bench.report.results import Results, Slice, duration, size, times

SHAPES = [(1, 1, 1, 1), (2, 2, 2, 2), (3, 3, 3, 3)]


def results(seconds, spread=0.0, **fields):
    """Results of contestants by name: seconds for each of the shapes, None for none."""
    measurements = [
        Measurement(
            contestant=name,
            case=bench_report.case(shape, **fields),
            p20=p50 * (1 - spread),
            p50=p50,
            p80=p50 * (1 + spread),
        )
        if p50 is not None
        else bench_report.untimed(name, bench_report.case(shape, **fields), "failed", "no")
        for name, column in seconds.items()
        for shape, p50 in zip(SHAPES, column, strict=False)
    ]
    return Results(bench_report.report(measurements=tuple(measurements)))


def test_means_are_geometric_and_of_the_cases_that_have_a_ratio():
    found = findings.means(results({"eager": [8.0, 8.0, 8.0], "numba": [4.0, 1.0, None]}))
    (mean,) = found[Slice("forward", "float32", 1)]
    assert mean.contestant.name == "numba"
    assert mean.ratio == pytest.approx(4.0, rel=1e-12)  # of 2 and 8
    assert (mean.cases, mean.asked) == (2, 3)


def test_kinds_of_layers_have_means_and_least_ratios_of_their_own():
    seconds = {"eager": 8.0, "numba": 2.0}
    measurements = [
        Measurement(
            contestant=name, case=bench_report.case(shape, cell=cell, group=group), p50=p50 / factor
        )
        for name, p50 in seconds.items()
        for shape, cell, group, own in (
            ((1, 1, 1, 1), "rnn", "grid", 1.0),
            ((1, 1, 1, 1), "lstm", "grid", 2.0),
            ((2, 2, 2, 2), "lstm", "grid", 0.5),
            ((3, 3, 3, 3), "lstm", "packed", 0.25),
        )
        for factor in (own if name == "numba" else 1.0,)
    ]
    found = Results(bench_report.report(measurements=tuple(measurements)))
    means, least = findings.means(found), findings.least(found)
    rnn, lstm = (Slice("forward", "float32", 1, cell) for cell in ("rnn", "lstm"))
    assert [str(part) for part in means] == [
        "forward, float32, 1 thread",
        "LSTM, forward, float32, 1 thread",
    ]
    assert [part.key for part in means] == ["forward-float32-1", "lstm-forward-float32-1"]
    assert [means[part][0].ratio for part in (rnn, lstm)] == pytest.approx([4.0, 4.0])
    # Variants are not in the mean, but may be the least.
    assert least[lstm]["numba"] == (1.0, measurements[-1].case)
    assert least[rnn]["numba"].ratio == 4.0


def test_the_memory_of_training_is_that_of_its_shape_in_the_grid():
    shape = (100, 64, 512, 512)
    cases = [
        bench_report.case(shape, mode="training", cell="gru"),
        bench_report.case(shape, mode="training", cell="gru", layers=2),
        bench_report.case(shape, mode="forward", cell="gru"),
        bench_report.case((1, 1, 1, 1), mode="training", cell="gru"),
    ]
    measurements = tuple(
        Measurement(contestant=name, case=case, p50=1.0, memory=memory)
        for case in cases
        for name, memory in (("eager", 300), ("numba", 200), ("jax", None))
    )
    found = findings.memory(Results(bench_report.report(measurements=measurements)))
    assert found == {cases[0]: {"eager": 300, "numba": 200}}


def test_who_has_no_time_at_all_has_no_mean():
    found = findings.means(results({"eager": [1.0], "jax": [None]}))
    ((mean,),) = found.values()
    assert mean[1:] == (None, 0, 1)


def test_without_a_grid_means_are_over_all_shapes():
    found = findings.means(results({"eager": [8.0, 8.0], "numba": [4.0, 1.0]}, group="packed"))
    ((mean,),) = found.values()
    assert mean.ratio == pytest.approx(4.0, rel=1e-12)


def test_means_are_over_the_grid_alone():
    report = bench_report.report()
    for part, column in findings.means(Results(report)).items():
        assert part.mode != "cold start"
        asked = {"forward": 7, "training": 7, "streaming": 2}[part.mode]
        assert {mean.asked for mean in column} == {asked}


def test_a_peer_that_is_faster_than_every_backend_is_named():
    seconds = {"eager": [9.0, 2.0, 1.0], "numba": [3.0, 3.0, 0.5], "tvm": [4.0, 2.5, None]}
    found = findings.faster(results(seconds | {"onnx": [1.0, 4.0, 0.5]}))
    assert [(f.case.T, f.contestant.name, f.backend.name) for f in found] == [
        (1, "onnx", "numba"),
        (2, "eager", "tvm"),
    ]
    assert [f.factor for f in found] == [3.0, 1.25]


def test_a_lead_within_the_spread_of_the_samples_is_not_certain():
    seconds = {"numba": [1.1, 3.0], "onnx": [1.0, 1.0]}
    found = findings.faster(results(seconds, spread=0.1))
    assert [(f.case.T, f.clear) for f in found] == [(2, True), (1, False)]


def test_a_peer_that_is_alone_comes_first():
    found = findings.faster(results({"numba": [9.0, None], "jax": [1.0, 1.0]}))
    assert [(f.factor, f.backend and f.backend.name) for f in found] == [
        (None, None),
        (9.0, "numba"),
    ]


def test_where_nobody_has_a_time_nobody_is_faster():
    assert findings.faster(results({"numba": [None], "jax": [None]})) == []


def test_each_reason_for_no_time_is_given_once_with_its_cases():
    found = findings.untimed(Results(bench_report.report()))
    (trains,) = [entry for entry in found if entry.contestant.name == "onnx"]
    assert trains[1:3] == ("declined", "it does not train")
    assert len(trains.cases) == 9 + 4 + 4 + 5 + 3
    kinds = {(entry.contestant.name, entry.verdict) for entry in found}
    assert {("jax", "wrong"), ("compile", "failed"), ("inductor", "absent")} <= kinds


def test_errors_are_the_largest_and_no_number_is_larger_than_nan():
    report = bench_report.report()
    assert findings.exactness(Results(report))["training", "float32"]["jax"] == (0.3, 3e-7)
    case = bench_report.case((1, 1, 1, 1))
    wrong = [
        bench_report.untimed("jax", bench_report.case((T, 1, 1, 1)), "wrong", "", error=error)
        for T, error in enumerate([1.0, float("nan"), 2.0])
    ]
    found = findings.exactness(Results(bench_report.report(measurements=tuple(wrong))))
    assert str(found[case.mode, case.dtype]["jax"].error) == "nan"


def test_a_sweep_is_cases_that_differ_in_one_size_alone():
    cases = [bench_report.case((100, 16, 64, 128), group="T", T=T) for T in (4, 2)] + [
        bench_report.case((100, 16, 8, 8), group="H", layers=2)
    ]
    cases += [bench_report.case((100, 16, H, H), group="H") for H in (16, 32)]
    cases += [bench_report.case((100, 16, 64, H), group="H", mode="training") for H in (64, 32)]
    report = bench_report.report(
        measurements=tuple(Measurement(contestant="eager", case=case, p50=1.0) for case in cases)
    )
    found = Results(report)
    assert [(s.field, [c.T if s.field == "T" else c.H for c in s.cases]) for s in found.sweeps] == [
        ("T", [2, 4]),
        ("H", [16, 32]),
        ("H", [32, 64]),
    ]
    assert [sweep.constant for sweep in found.sweeps] == [
        "B=16, I=64, H=128, 1 thread",
        "T=100, B=16, I=H, 1 thread",
        "T=100, B=16, I=64, 1 thread",
    ]
    assert found.shapes() == (cases[2],)  # alone in its group


def test_numbers_have_as_many_digits_as_mean_something():
    assert [times(r) for r in (0.5, 1.994, 1.996, 12.34, 123.4)] == [
        "0.50x", "1.99x", "2.0x", "12.3x", "123x",
    ]  # fmt: skip
    assert [duration(s) for s in (2.0, 0.9996, 1.5e-3, 2.5e-5, 3e-8)] == [
        "2 s", "1 s", "1.5 ms", "25 µs", "30 ns",
    ]  # fmt: skip
    assert [size(n) for n in (5, 2048, 3 << 20, 5 << 30)] == ["5 B", "2 KiB", "3 MiB", "5 GiB"]

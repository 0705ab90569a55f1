"""Protects the comparison of two reports: rnnjit's backends, by ratios to each run's eager."""

import re

import pytest
from bench_report import CASE, OTHER
from bench_report import report_of as report
from folders import ROOT
from msgspec.structs import replace

from rnnjit.bench.records import Case, ContestantInfo, encode, read
from rnnjit.bench.report.regression import changes, slower

OLD = report({"eager": {CASE: 1.0, OTHER: 4.0}, "fast": {CASE: 0.25, OTHER: 2.0}})


@pytest.mark.parametrize(
    ("times", "factor", "found"),
    [
        # The machine is three times slower, the ratio as it was.
        ({"eager": {CASE: 3.0}, "fast": {CASE: 0.75}}, 1.0, False),
        # As fast as before, but eager is faster now.
        ({"eager": {CASE: 0.5}, "fast": {CASE: 0.25}}, 1.9, True),
        ({"eager": {CASE: 1.0}, "fast": {CASE: 0.28}}, 1.15, False),
        ({"eager": {CASE: 1.0}, "fast": {CASE: 0.29}}, 1.15, True),
        ({"eager": {CASE: 1.0}, "fast": {CASE: 0.1}}, 1.0, False),
        ({"eager": {CASE: 1.0}, "fast": {CASE: "wrong"}}, 9.0, True),
        ({"eager": {CASE: 1.0}, "fast": {CASE: "failed"}}, 9.0, True),
        ({"eager": {CASE: 1.0}, "fast": {CASE: "declined"}}, 9.0, True),
    ],
)
def test_slower_is_who_lost_against_eager_or_has_no_time_any_more(times, factor, found):
    all_changes = changes(OLD, report(times))
    assert [(change.backend, change.case) for change in all_changes] == [("fast", CASE)]
    assert all_changes[0].before == 4.0
    assert slower(all_changes, factor) == (all_changes if found else [])


def test_ratios_to_different_baselines_do_not_compare():
    other = ContestantInfo(name="eager-float32", kind="baseline", title="PyTorch, float32")
    new = report({"eager": {CASE: 1.0}, "fast": {CASE: 9.0}})
    assert changes(OLD, new)
    assert changes(OLD, replace(new, contestants=(other, *new.contestants))) == []


def test_ratios_before_and_after_are_by_case():
    new = report({"eager": {OTHER: 4.0, CASE: 1.0}, "fast": {OTHER: 4.0, CASE: 0.125}})
    found = [(c.case, c.before, c.after, c.slower) for c in changes(OLD, new)]
    assert found == [(OTHER, 2.0, 1.0, 2.0), (CASE, 4.0, 8.0, 0.5)]


@pytest.mark.parametrize(
    "new",
    [
        report({"eager": {CASE: 1.0}, "peer": {CASE: 9.0}}),
        report({"eager": {CASE: 9.0}}),
        report({"eager": {CASE: 1.0}, "second": {CASE: 9.0}}),
        report({"eager": {CASE: 1.0}, "fast": {CASE: 9.0}}, absent=["fast"]),
        report({"eager": {CASE: "failed"}, "fast": {CASE: 9.0}}),
        report({"eager": {Case(T=7, B=1, I=1, H=1): 1.0}, "fast": {Case(T=7, B=1, I=1, H=1): 9.0}}),
    ],
    ids=["a peer", "eager", "new", "absent", "without eager", "another case"],
)
def test_what_cannot_be_compared_or_is_not_ours_does_not_count(new):
    old = report({"eager": {CASE: 1.0}, "fast": {CASE: 0.25}, "peer": {CASE: 0.25}})
    assert changes(old, new) == []


def test_what_had_no_time_before_is_no_change():
    old = report({"eager": {CASE: 1.0}, "fast": {CASE: "wrong"}})
    assert changes(old, report({"eager": {CASE: 1.0}, "fast": {CASE: 0.5}})) == []


def test_a_file_gives_back_the_report(tmp_path):
    (tmp_path / "file").write_bytes(encode(OLD))
    assert read(tmp_path / "file") == OLD


def test_a_report_from_before_there_were_other_cells_is_of_nn_rnn(tmp_path):
    new = report({"eager": {CASE: 1.0}, "fast": {CASE: 0.5}})
    later = (b'"cell": "rnn"', b'"proj_size": 0', b'"as_cell": false')
    content = encode(OLD)
    for field in later:
        assert content.count(field) == len(OLD.measurements)
        content = re.sub(rb"\s*" + re.escape(field) + b",", b"", content)
    (tmp_path / "old.json").write_bytes(content)
    old = read(tmp_path / "old.json")
    assert old == OLD
    assert [(c.before, c.after) for c in changes(old, new)] == [(4.0, 2.0)]
    lstm = Case(T=5, B=2, I=3, H=4, cell="lstm")
    assert changes(old, report({"eager": {lstm: 1.0}, "fast": {lstm: 0.5}})) == []


def test_the_committed_reports_can_be_read():
    for name in ("full", "training", "packed", "streaming", "scaling"):
        cases = {
            m.case for m in read(ROOT / "benchmarks" / "results" / f"{name}.json").measurements
        }
        assert {case.cell for case in cases} <= {"rnn", "lstm", "gru"}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "no report of rnnjit bench"),
        (b"\xff\xfe", "no report of rnnjit bench"),
        (b"[1, 2]", "no report of rnnjit bench: Expected `object`, got `array`"),
        (b'{"modules": []}', "no report of rnnjit bench"),
        (
            encode(OLD).replace(b'"format": 1', b'"format": 2'),
            "its format is 2, expected 1",
        ),
        (encode(OLD).replace(b'"T": 5', b'"T": "5"'), "Expected `int`, got `str`"),
        (encode(OLD).replace(b'"T": 5', b'"Z": 1, "T": 5'), "unknown field `Z`"),
    ],
)
def test_what_is_no_report_is_refused(tmp_path, content, says):
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(ValueError, match=says):
        read(tmp_path / "file")

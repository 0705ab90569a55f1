"""Protects the runner: wrong or failing contestants have no time, and the others go on."""

import os
from itertools import groupby
from pathlib import Path

import pytest
from bench_contestants import (
    Absent,
    Crashing,
    CrashingLater,
    Forgetful,
    Hanging,
    NotANumber,
    Objects,
    Plain,
    Raising,
    Telling,
    TellingToo,
    WrongGradient,
    WrongValues,
)

from rnnjit.bench.cases import EMPTY_CACHE, FILLED_CACHE
from rnnjit.bench.contestants.eager import Eager
from rnnjit.bench.plan import Plan
from rnnjit.bench.records import Case, Machine
from rnnjit.bench.run import commit, run

FORWARD = Case(T=5, B=2, I=3, H=4)
TRAINING = Case(T=5, B=2, I=3, H=4, mode="training")
STREAMING = Case(T=1, B=2, I=3, H=4, mode="streaming")
PLAN = Plan(rounds=3, sample=1e-3, pause=0.0, starts=2, memory=False)
MACHINE = Machine(cpu="a cpu", system="a system", cpus=2, isa="an isa")


def measured(cases, contestants, plan=PLAN, **options):
    return run("quick", cases, contestants, plan, MACHINE, **options)


def untimed(measurement):
    times = ("p20", "p50", "p80", "first_call", "memory")
    return all(getattr(measurement, name) is None for name in times) and not measurement.samples


@pytest.fixture(scope="module")
def one_among_others():
    """Those that are wrong or break, between two that are right."""
    broken = (WrongValues, WrongGradient, NotANumber, Forgetful)
    broken += (Objects, Raising, Crashing, CrashingLater)
    return measured(
        [FORWARD, TRAINING, STREAMING], [Eager(), *(each() for each in broken), Plain()]
    )


@pytest.mark.parametrize(
    ("name", "verdicts", "says"),
    [
        ("wrong values", ["wrong"] * 3, "y is off by"),
        ("wrong gradient", ["right", "wrong", "right"], "the gradient of weight_hh_l0 is off by"),
        ("not a number", ["wrong"] * 3, "y has 1 NaN, eager has 0"),
        ("forgetful", ["right", "right", "wrong"], "y is off by"),
        ("objects", ["failed"] * 3, "Object arrays cannot be loaded"),
        ("raising", ["failed"] * 3, "ValueError: no such luck"),
        ("crashing", ["failed"] * 3, "SIGABRT; the last words"),
        ("crashing later", ["failed"] * 3, "killed by SIGABRT"),
    ],
)
def test_what_is_wrong_or_breaks_has_no_time(one_among_others, name, verdicts, says):
    found = [m for m in one_among_others.measurements if m.contestant == name]
    assert [m.case for m in found] == [FORWARD, TRAINING, STREAMING]
    assert [m.verdict for m in found] == verdicts
    for m in found:
        assert untimed(m) is (m.verdict != "right")
        assert (says in m.reason) is (m.verdict != "right")


@pytest.mark.parametrize("name", ["eager", "plain"])
def test_what_is_right_has_its_times_whatever_the_others_do(one_among_others, name):
    found = [m for m in one_among_others.measurements if m.contestant == name]
    assert [m.case for m in found] == [FORWARD, TRAINING, STREAMING]
    for m in found:
        assert m.verdict == "right"
        assert 0 < m.p20 <= m.p50 <= m.p80
        assert m.samples == PLAN.rounds
        assert 0 < m.error < 1e-5
        assert 0 < m.eager_error < 1e-5
        assert m.first_call > 0
    assert one_among_others.complete


def test_what_hangs_is_ended_and_the_others_go_on(notes):
    plan = Plan(rounds=3, sample=1e-3, timeout=5)
    report = measured([FORWARD], [Plain(), Hanging()], plan)
    assert [m.verdict for m in report.measurements] == ["right", "failed"]
    assert report.measurements[1].reason == "no answer within 5 s: ended"
    with pytest.raises(ProcessLookupError):
        os.kill(notes()[0]["pid"], 0)


def test_samples_are_taken_in_turns(notes):
    report = measured([FORWARD], [Telling(), TellingToo()])
    order = [name for name, _ in groupby(note["run"] for note in notes() if "run" in note)]
    ready, rounds = ["telling", "telling too"], ["telling", "telling too"] * PLAN.rounds
    assert order == ready + rounds
    told = report.measurements[0]
    assert told.contestant == "telling"
    # Every call sleeps for 10 ms, and a sample lasts 1 ms at least: a call is a sample.
    assert told.calls == 1
    assert told.p20 >= 0.01
    assert told.samples == 3


def test_a_process_lives_on_while_the_number_of_threads_stays(notes):
    two = Case(T=5, B=2, I=3, H=4, threads=2)
    measured([FORWARD, TRAINING, two], [Telling()])
    told = [note for note in notes() if "pid" in note]
    assert [note["threads"] for note in told] == [1, 1, 2]
    pids = [note["pid"] for note in told]
    assert pids[0] == pids[1] != pids[2]


def test_who_needs_longer_than_the_plan_allows_is_left_out(notes):
    plan = Plan(rounds=1, sample=1e-3, longest=0.4, memory=False)
    report = measured([FORWARD], [Telling()], plan)
    assert [m.verdict for m in report.measurements] == ["declined"]
    assert "takes about 0.5 s: this plan allows 0.4" in report.measurements[0].reason
    assert notes() == []


@pytest.mark.parametrize(("most", "rounds"), [(0.02, 3), (60, 5)])
def test_slow_calls_get_fewer_rounds(notes, most, rounds):
    plan = Plan(rounds=5, sample=1e-3, pause=0.0, most=most, memory=False)
    report = measured([FORWARD], [Telling()], plan)
    assert [m.samples for m in report.measurements] == [rounds]


def test_memory_is_measured_after_the_rounds():
    report = measured([FORWARD], [Plain()], Plan(rounds=1, sample=1e-3))
    assert 0 <= report.measurements[0].memory < 2**26


@pytest.mark.parametrize("group", [EMPTY_CACHE, FILLED_CACHE])
def test_every_sample_of_a_cold_start_is_a_new_process(notes, group):
    case = Case(T=5, B=2, I=3, H=4, mode="cold start", group=group)
    report = measured([case], [Telling()])
    told = [note for note in notes() if "pid" in note]
    filled = group == FILLED_CACHE
    assert len({note["pid"] for note in told}) == len(told) == PLAN.starts + filled
    assert len({note["cache"] for note in told}) == (1 if filled else len(told))
    assert [len(note["found"]) for note in told] == ([0, 1, 2] if filled else [0, 0])
    assert not Path(told[0]["cache"]).exists()
    for m in report.measurements:
        assert (m.verdict, m.samples, m.calls) == ("right", PLAN.starts, 1)
        assert m.p50 > 0.05  # a process has not even started by then


def test_an_interruption_keeps_what_was_measured():
    def interrupt(what, seconds):
        if what == "round 2 of 3" and case_done:
            raise KeyboardInterrupt
        if what == "round 3 of 3":
            case_done.append(True)

    case_done = []
    cases = [FORWARD, TRAINING, STREAMING]
    report = measured(cases, [Plain()], progress=interrupt)
    assert not report.complete
    assert [(m.case, m.samples) for m in report.measurements] == [(FORWARD, 3), (TRAINING, 2)]
    assert all(m.p50 > 0 for m in report.measurements)


def test_who_is_absent_is_in_the_report_and_takes_no_part():
    report = measured([FORWARD], [Plain(), Absent()])
    assert [m.contestant for m in report.measurements] == ["plain"]
    absent = report.contestants[1]
    assert absent.name == "absent one"
    assert "OSError: its library is broken" in absent.absent


def test_a_package_outside_of_a_working_tree_has_no_commit(tmp_path):
    assert commit(tmp_path) == ""

"""Protects the timing core: samples in turns, long enough, and undisturbed."""

import gc

import pytest

from rnnjit.runtime import timing
from rnnjit.runtime.timing import Timing, interleave, sample


def test_interleave_takes_turns_and_reports_every_round():
    order = []
    rounds = []
    candidates = {"a": lambda: order.append("a"), "b": lambda: order.append("b")}
    times = interleave(candidates, rounds=3, min_sample=0.0, on_round=lambda: rounds.append(1))
    # Each candidate calibrates with two calls; then each round has a settling and a timed call.
    assert order == ["a"] * 2 + ["b"] * 2 + ["a", "a", "b", "b"] * 3
    assert len(rounds) == 3
    assert [times[name].rounds for name in "ab"] == [3, 3]
    assert all(0 < t.p20 <= t.median <= t.p80 for t in times.values())


def test_a_short_call_is_repeated_until_it_fills_a_sample():
    timing = interleave({"short": lambda: None}, rounds=1, min_sample=1e-3)["short"]
    assert timing.calls > 1


def test_the_collector_is_off_in_samples_and_back_on_after_them():
    seen = []
    interleave({"a": lambda: seen.append(gc.isenabled())}, rounds=2, min_sample=0.0)
    assert False in seen
    assert gc.isenabled()


def test_the_collector_stays_off_for_those_who_turned_it_off():
    gc.disable()
    try:
        interleave({"a": lambda: None}, rounds=1, min_sample=0.0)
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_interleave_needs_a_round():
    with pytest.raises(ValueError, match="at least 1, got 0"):
        interleave({}, rounds=0)


def test_another_clock_takes_all_samples():
    counts = []

    def clock(call, calls):
        counts.append(calls)
        return 2 * sample(call, calls)

    interleave({"a": lambda: None}, rounds=3, min_sample=0.0, clock=clock)
    assert counts == [1] * 4


def test_the_least_sample_and_the_quiet_ones_are_told():
    found = Timing.of([3.0, 1.0, 2.0], 1, [61, 0, 40])
    assert (found.least, found.median, found.rounds) == (1.0, 2.0, 3)
    assert found.quiet == 2  # a second gives way 20 times, and no more often
    assert Timing.of([3.0, 1.0, 2.0], 1).quiet == 3


@pytest.mark.parametrize(
    ("samples", "preempted", "settled"),
    [
        ([1.0, 1.02, 1.05, 1.08, 9.0], None, True),
        ([1.0, 1.2, 1.3, 1.2, 1.3], None, False),
        ([1.0, 1.02, 1.05, 1.08, 1.0], [999] * 5, False),
        ([1.0, 1.02, 1.05, 1.08, 1.0], [999, 0, 999, 999, 999], True),
    ],
)
def test_a_least_time_is_settled_if_quiet_samples_agree(samples, preempted, settled):
    assert Timing.of(samples, 1, preempted).settled is settled


def test_preemptions_are_counted_for_each_sample(monkeypatch):
    counted = iter([5, 5, 5, 9, 20, 20])
    monkeypatch.setattr(timing, "preemptions", lambda: next(counted))
    found = interleave(
        {"a": lambda: None}, rounds=3, min_sample=0.0, clock=lambda call, calls: 1e-3
    )
    assert found["a"].quiet == 2


def test_preemptions_never_fall():
    before = timing.preemptions()
    sum(range(1_000_000))
    assert timing.preemptions() >= before >= 0


def test_a_system_that_does_not_count_preemptions_has_quiet_samples(monkeypatch):
    monkeypatch.setattr(timing, "resource", None)
    assert timing.preemptions() == 0

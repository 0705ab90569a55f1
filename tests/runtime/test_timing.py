"""Protects the timing core: samples in turns, long enough, and undisturbed."""

import gc

import pytest

from rnnjit.runtime.timing import interleave, sample


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

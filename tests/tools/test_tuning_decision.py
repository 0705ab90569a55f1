"""Protects the decision of `rnnjit.tune`: noise never replaces the default, a clear gain does."""

import random

import pytest

from rnnjit.runtime.timing import Timing
from rnnjit.tools.tuning_decision import ENOUGH, decide

ROUNDS = 15
TEAM, ALONE = 42e-6, 1.1e-3
SLICE = 4e-3


def timing(samples, preempted=None, calls=25):
    return Timing.of(samples, calls, preempted)


def quiet(seconds, rounds=ROUNDS):
    """Samples of an idle machine, within 4%."""
    return timing([seconds * (1 + 0.01 * (n % 5)) for n in range(rounds)])


def beside_two_processes(draw, seconds, alone):
    """Samples of a call on two cores with two busy processes, as they were seen on such a machine.

    A team of two threads meets at every step, and waits for time slices while one of them does not
    run; a thread alone loses every other slice. Now and then a sample is lucky.
    """
    samples, preempted = [], []
    for _ in range(ROUNDS):
        if draw.random() < (0.6 if alone else 0.15):
            samples.append(seconds * draw.uniform(1.0, 1.1))
            preempted.append(0)
        else:
            samples.append(seconds + SLICE * draw.choice((0.05, 0.5, 1, 2, 3, 4)))
            preempted.append(draw.randrange(2, 60))
    return timing(samples, preempted, calls=1 if alone else 25)


def test_busy_neighbours_never_make_a_slower_backend_the_choice():
    told = 0
    for seed in range(2000):
        draw = random.Random(seed)
        times = {
            "team": beside_two_processes(draw, TEAM, alone=False),
            "alone": beside_two_processes(draw, ALONE, alone=True),
        }
        # That this noise could mislead, and does mislead whoever compares medians.
        told += times["alone"].median < times["team"].median
        order = decide(times, "team").order
        assert order is None or order[0] == "team", seed
    assert told > 500


def test_samples_that_agree_on_a_time_slice_tell_nothing():
    """Every sample waited for as long: only the system's count of preemptions shows it."""
    slices = timing([SLICE * (1 + 0.001 * n) for n in range(ROUNDS)], [2] * ROUNDS, calls=1)
    found = decide({"team": slices, "alone": quiet(ALONE)}, "team")
    assert found.order is None
    assert "other programs ran in 15 of 15" in found.why
    calm = timing([SLICE * (1 + 0.001 * n) for n in range(ROUNDS)], [0] * ROUNDS, calls=1)
    assert decide({"team": calm, "alone": quiet(ALONE)}, "team").order == ("alone", "team")


def test_the_system_s_own_short_work_is_no_neighbour():
    """A call of a second gives way now and then on an idle machine, too."""
    long = timing([1.0] * ROUNDS, [3] * ROUNDS, calls=1)
    assert decide({"slow": long, "quick": quiet(0.1)}, "slow").order == ("quick", "slow")


@pytest.mark.parametrize(
    ("ratio", "order"),
    [
        (0.5, ("other", "default")),
        (0.8, ("other", "default")),
        (0.95, ("default", "other")),
        (1.0, ("default", "other")),
        (3.0, ("default", "other")),
    ],
)
def test_the_default_stays_unless_another_is_clearly_faster(ratio, order):
    found = decide({"other": quiet(ratio * TEAM), "default": quiet(TEAM)}, "default")
    assert found.order == order


def test_the_fastest_of_those_that_are_clearly_faster_comes_first_and_the_others_by_time():
    times = {"a": quiet(4.0), "b": quiet(1.0), "c": quiet(2.0), "d": quiet(0.98)}
    assert decide(times, "a").order == ("d", "b", "c", "a")
    assert decide(times, "b").order == ("b", "d", "c", "a")


def test_a_challenger_whose_samples_overlap_with_the_default_s_is_not_believed():
    wild = timing([0.5 * TEAM] * 8 + [2 * TEAM] * 7)
    found = decide({"default": quiet(TEAM), "wild": wild}, "default")
    assert found.order is None
    assert (
        found.why
        == "wild may be faster than default, but times of wild vary from 0.021 to 0.084 ms"
    )


def test_a_least_sample_that_stands_alone_is_not_believed():
    lucky = timing([TEAM, *[5 * TEAM] * 14])
    found = decide({"default": lucky, "other": quiet(10 * TEAM)}, "default")
    assert found.order is None
    assert found.why == "times of default vary from 0.042 to 0.21 ms: tune on a quiet machine"


def test_few_rounds_say_nothing():
    times = {"default": quiet(1.0, ENOUGH - 1), "other": quiet(0.1, ENOUGH - 1)}
    assert decide(times, "default").order is None
    times = {"default": quiet(1.0, ENOUGH), "other": quiet(0.1, ENOUGH)}
    assert decide(times, "default").order == ("other", "default")

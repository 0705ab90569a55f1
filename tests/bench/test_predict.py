"""Protects the scaling model: fitted to its own times, it finds the costs that made them."""

import numpy as np
import pytest
from bench_report import MACHINE
from predict import held_back, random_cases, stops_at, teams_up_to
from scaling_model import MEMORY, Costs, cut, errors, fit, predict, scaled

from rnnjit.bench.records import Case

TRUE = Costs(0.8, 0.6, 2e-7, 4e-10, 5e-7, 2e-5, 4e-6, 2e-10, 3e-10)


FREE = {"step": 1e-15, "element": 1e-18, "meeting": 1e-15, "call": 1e-12, "team": 1e-12}
FREE |= {"moving": 1e-18, "packing": 1e-18}


@pytest.mark.parametrize("mode", ["forward", "training"])
def test_held_back_times_are_predicted_from_the_others(mode):
    random = np.random.default_rng(0)
    times = {
        case: predict(TRUE, MACHINE, case) * np.exp(0.05 * random.normal())
        for case in random_cases(60, (1, 2))
        if case.mode == mode
    }
    kept, back = held_back(times)
    assert {(c.T, c.B) for c in kept}.isdisjoint({(c.T, c.B) for c in back})
    assert len(back) == 40
    off = np.abs(errors(fit(kept, MACHINE), MACHINE, back))
    assert np.median(off) < 0.1


def test_a_product_bound_by_multiply_adds_takes_what_they_take():
    free = Costs(compute=0.9, reading=1e6, **FREE)
    by_hand = 2 * 100 * 64 * 512 * (512 + 512) / (100e9 * 0.9)
    for fields, times in (({}, 1), ({"threads": 2}, 0.5), ({"mode": "training"}, 3)):
        case = Case(T=100, B=64, I=512, H=512, **fields)
        assert predict(free, MACHINE, case) == pytest.approx(times * by_hand, rel=1e-3)


def test_one_sequence_is_bound_by_reading_the_weights():
    free = Costs(compute=1e6, reading=0.5, **FREE)
    by_hand = 100 * 512 * 512 * 4 / (100e9 * 0.5)
    assert predict(free, MACHINE, Case(T=100, B=1, I=64, H=512)) == pytest.approx(by_hand, rel=0.05)


def test_the_plan_is_the_backends_own():
    assert cut(Case(T=100, B=1, I=512, H=512, threads=2), MACHINE).parts == 2
    assert cut(Case(T=100, B=64, I=512, H=512, threads=2), MACHINE).slices == 2


@pytest.mark.parametrize("cores", MEMORY)
def test_more_cores_like_these(cores):
    machine = scaled(MACHINE, cores)
    assert machine.peaks[cores - 1].flops == 1e11 * cores
    memory = [b.rate for b in machine.bandwidths if b.level == "memory"]
    assert memory[0] == 1e10
    assert max(memory) <= MEMORY[cores]
    last = [b.capacity for b in machine.bandwidths if b.level == "L3" and b.threads >= 8]
    assert set(last) == {4 << 20}


def test_where_more_threads_stop_paying():
    assert teams_up_to(96) == [1, 2, 4, 8, 16, 32, 64, 96]
    assert teams_up_to(8) == [1, 2, 4, 8]
    assert stops_at({1: 10.0, 2: 5.0, 4: 4.8, 8: 2.0}) == 2
    assert stops_at({1: 10.0, 2: 5.0, 4: 2.5}) == 4

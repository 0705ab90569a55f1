"""The model of a layer's time: fitted to times that it made itself, it finds what made them."""

import numpy as np
import pytest
from made_up_machine import GIGA, MACHINE
from measures.model import Costs, Point, cut, errors, fit, predict
from measures.pairs import Shape
from measures.scaled import MEMORY, scaled
from predict import held_back, shapes, stops_at, teams_up_to

TRUE = Costs(0.8, 0.6, 2e-7, 4e-10, 5e-7, 2e-5, 4e-6, 2e-10, 3e-10)


def points(noise, training=False):
    random = np.random.default_rng(0)
    return [
        Point(
            *(shape, threads, training),
            predict(TRUE, MACHINE, shape, threads, training) * np.exp(noise * random.normal()),
        )
        for shape in shapes(60)
        for threads in (1, 2)
    ]


@pytest.mark.parametrize("training", [False, True])
def test_held_back_times_are_predicted_from_the_others(training):
    kept, back = held_back(points(0.05, training))
    assert {p.shape for p in kept}.isdisjoint({p.shape for p in back})
    assert len(back) == 40
    off = np.abs(errors(fit(kept, MACHINE), MACHINE, back))
    assert np.median(off) < 0.1


def test_a_product_bound_by_multiply_adds_takes_what_they_take():
    shape = Shape(100, 64, 512, 512)
    free = Costs(0.9, 1e6, 1e-15, 1e-18, 1e-15, 1e-12, 1e-12, 1e-18, 1e-18)
    by_hand = 2 * 100 * 64 * 512 * (512 + 512) / (100 * GIGA * 0.9)
    assert predict(free, MACHINE, shape, 1) == pytest.approx(by_hand, rel=1e-3)
    assert predict(free, MACHINE, shape, 2) == pytest.approx(by_hand / 2, rel=1e-3)
    assert predict(free, MACHINE, shape, 1, training=True) == pytest.approx(3 * by_hand, rel=1e-3)


def test_one_sequence_is_bound_by_reading_the_weights():
    shape = Shape(100, 1, 64, 512)
    free = Costs(1e6, 0.5, 1e-15, 1e-18, 1e-15, 1e-12, 1e-12, 1e-18, 1e-18)
    by_hand = 100 * 512 * 512 * 4 / (100 * GIGA * 0.5)
    assert predict(free, MACHINE, shape, 1) == pytest.approx(by_hand, rel=0.05)


def test_the_plan_is_the_backends_own():
    assert cut(Shape(100, 1, 512, 512), 2, 16).parts == 2
    assert cut(Shape(100, 64, 512, 512), 2, 16).slices == 2


@pytest.mark.parametrize("cores", MEMORY)
def test_more_cores_like_these(cores):
    machine = scaled(MACHINE, cores)
    assert machine.peaks[cores - 1].flops == 100 * GIGA * cores
    memory = [b.rate for b in machine.bandwidths if b.level == "memory"]
    assert memory[0] == 10 * GIGA
    assert max(memory) <= MEMORY[cores]
    last = [b.capacity for b in machine.bandwidths if b.level == "L3" and b.threads >= 8]
    assert set(last) == {4 << 20}


def test_where_more_threads_stop_paying():
    assert teams_up_to(96) == [1, 2, 4, 8, 16, 32, 64, 96]
    assert teams_up_to(8) == [1, 2, 4, 8]
    assert stops_at({1: 10.0, 2: 5.0, 4: 4.8, 8: 2.0}) == 2
    assert stops_at({1: 10.0, 2: 5.0, 4: 2.5}) == 4

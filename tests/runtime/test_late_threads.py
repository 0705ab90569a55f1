"""Protects the choice between a team and one thread where the team's threads come late."""

import time

import pytest
import torch
from teams import forget_plans
from torch import nn

import rnnjit
from rnnjit.runtime import late_threads
from rnnjit.runtime.late_threads import LateThreads
from rnnjit.runtime.openmp import openmp

US, MS, S = 1_000, 1_000_000, 1_000_000_000


@pytest.fixture
def clock(monkeypatch):
    """The time in nanoseconds, which passes when it is set."""
    now = [S]
    monkeypatch.setattr(late_threads, "perf_counter_ns", lambda: now[0])
    return now


def measured(took):
    """What is known after one thread was measured."""
    known = LateThreads()
    while known.alone(S):
        known.ran_alone(took)
    return known


def alone_for(known, clock):
    """Nanoseconds from now on for which calls run on one thread."""
    low, high = clock[0], clock[0] + 100 * S
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if known.alone(middle) else (low, middle)
    return low - clock[0]


def test_one_thread_is_measured_first_and_then_the_team_is_tried(clock):
    known = LateThreads()
    for _ in range(2):
        assert known.alone(clock[0])
        known.ran_alone(40 * US)
    assert not known.alone(clock[0])


def test_a_long_call_is_not_run_on_one_thread_to_measure_it(clock):
    assert not LateThreads(10**9).alone(clock[0])


def test_a_team_that_is_fast_is_kept(clock):
    known = measured(100 * US)
    for _ in range(100):
        known.ran_on_team(60 * US)
        assert not known.alone(clock[0])


def test_after_a_wait_calls_run_alone_for_a_multiple_of_what_was_lost(clock):
    known = measured(100 * US)
    known.ran_on_team(8 * MS)
    assert alone_for(known, clock) == 4 * (8 * MS - 100 * US)
    clock[0] += S
    assert not known.alone(clock[0])


def test_waits_stay_a_small_part_of_all_time(clock):
    known = measured(100 * US)
    waited = alone = 0
    for _ in range(20):
        known.ran_on_team(8 * MS)
        waited += 8 * MS
        pause = alone_for(known, clock)
        alone += pause
        clock[0] += pause
    assert waited < alone / 40


def test_it_recovers_when_teams_are_fast_again(clock):
    known = measured(100 * US)
    for _ in range(10):
        known.ran_on_team(8 * MS)
        clock[0] += 10 * S
    for _ in range(16 * 6):
        assert not known.alone(clock[0])
        known.ran_on_team(60 * US)
    known.ran_on_team(8 * MS)
    assert alone_for(known, clock) == 4 * (8 * MS - 100 * US)


def test_no_pause_is_longer_than_a_second(clock):
    known = measured(100 * US)
    known.ran_on_team(60 * S)
    assert alone_for(known, clock) == S


def test_what_one_thread_takes_is_the_least_that_was_seen(clock):
    known = measured(9 * MS)  # the thread had lost its core
    known.ran_on_team(8 * MS)
    assert not known.alone(clock[0])
    known.ran_alone(100 * US)
    known.ran_on_team(8 * MS)
    assert known.alone(clock[0])


def test_calls_of_one_kind_and_nearly_one_size_share_what_is_known():
    known = late_threads.late_threads("a layer", 1_000_000)
    assert late_threads.late_threads("a layer", 1_020_000) is known
    assert late_threads.late_threads("a layer", 1_500_000) is not known
    assert late_threads.late_threads("another layer", 1_000_000) is not known


class Parallel:
    """Makes real teams, each of which takes `delay` seconds longer than it would.

    Attributes:
        teams: how many were made.
    """

    def __init__(self, parallel):
        self.parallel, self.delay, self.teams = parallel, 0.0, 0

    def __call__(self, *arguments):
        self.teams += 1
        self.parallel(*arguments)
        time.sleep(self.delay)


@pytest.fixture
def parallel(monkeypatch):
    """Counts and delays teams, of two threads; nothing is known of any call."""
    late_threads._shared.cache_clear()
    forget_plans()
    found = Parallel(openmp().parallel)
    monkeypatch.setattr(openmp(), "parallel", found)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield found
    torch.set_num_threads(before)


@pytest.mark.parametrize("how", ["call", "training", "stream"])
@pytest.mark.parametrize("backend", ["numba", "tvm"])
def test_calls_go_on_alone_beside_busy_neighbours_with_the_same_bits(
    backend, how, parallel, monkeypatch
):
    # Once a team was slow, the others are left out for longer than this test takes anywhere.
    monkeypatch.setattr(late_threads, "_LONGEST", 10**15)
    monkeypatch.setattr(late_threads, "_MOST", 10**9)
    monkeypatch.setattr(late_threads, "_FIRST", 10**9)
    torch.manual_seed(0)
    rnn = nn.RNN(64, 512)
    module, x = rnnjit.compile(rnn, backend=backend), torch.randn(12, 16, 64)
    stream = rnnjit.Stream(rnn, 16, backend)

    def call():
        if how == "stream":
            stream.reset()
            return torch.stack([stream.step(frame) for frame in x])
        with torch.set_grad_enabled(how == "training"):
            y, _ = module(x)
        if how == "call":
            return y
        return torch.cat([g.flatten() for g in torch.autograd.grad(y.sum(), [*rnn.parameters()])])

    first = call()
    while not parallel.teams:
        assert torch.equal(call(), first)
    parallel.delay, parallel.teams = 0.3, 0
    for _ in range(6):
        assert torch.equal(call(), first)
    slow = parallel.teams
    for _ in range(6):
        assert torch.equal(call(), first)
    # A pass is one team with numba and three with tvm; each pass may try once.
    assert (parallel.teams, slow <= (6 if how == "training" else 3)) == (slow, True)


SMALL = {"64": (100, 1, 64, 64), "a step": (1, 1, 64, 64), "8 rows": (4, 8, 32, 64)}
LARGE = {"256": (100, 1, 256, 256), "rows": (30, 16, 64, 64), "a step": (1, 16, 512, 512)}


@pytest.mark.parametrize(
    ("shape", "threads"),
    [*((shape, 1) for shape in SMALL.values()), *((shape, 2) for shape in LARGE.values())],
    ids=str,
)
def test_small_calls_run_on_one_thread(shape, threads, parallel):
    T, B, I, H = shape
    module, x = rnnjit.compile(nn.RNN(I, H), backend="numba"), torch.randn(T, B, I)
    with torch.no_grad():
        for _ in range(4):
            module(x)
    assert (parallel.teams > 0) == (threads > 1)

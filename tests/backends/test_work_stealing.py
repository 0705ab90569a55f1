"""Protects work stealing: if a thread comes late, or never, the others do its work."""

import ctypes
import threading
import time

import pytest
import torch
from on_cpu import ON_CPU
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

import rnnjit
from rnnjit.runtime.openmp import openmp

EXACT = [name for name in ("numba", "tvm") if name in ON_CPU]
ENTRY = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class LateTeam:
    """Makes real OpenMP teams, of which some threads are kept from entering the kernel.

    Attributes:
        present: the threads that enter at once; the others wait for these to leave.
        enters: whether the others enter after that, or never.
        stuck: whether the threads present could not leave without the others.
        teams: how many were made.
    """

    def __init__(self, parallel, present, *, enters):
        self.parallel, self.present, self.enters = parallel, present, enters
        self.stuck, self.teams = False, 0
        self.number = ctypes.CFUNCTYPE(ctypes.c_int)(openmp().symbols["omp_get_thread_num"])

    def __call__(self, team, block, threads, flags):
        kernel, left, waiting = ENTRY(team), threading.Event(), set(self.present)
        self.teams += 1

        def member(argument):
            thread = self.number()
            if thread in self.present:
                kernel(argument)
                waiting.discard(thread)
                if not waiting:
                    left.set()
                return
            in_time = left.wait(20)
            self.stuck |= not in_time
            if self.enters or not in_time:
                kernel(argument)

        self.parallel(ENTRY(member), block, threads, flags)


class SlowTeam:
    """Makes real OpenMP teams, of which all threads but the first enter after `delay` seconds."""

    def __init__(self, parallel):
        self.parallel, self.delay = parallel, 0.0
        self.number = ctypes.CFUNCTYPE(ctypes.c_int)(openmp().symbols["omp_get_thread_num"])

    def __call__(self, team, block, threads, flags):
        kernel = ENTRY(team)

        def member(argument):
            if self.number() > 0:
                time.sleep(self.delay)
            kernel(argument)

        self.parallel(ENTRY(member), block, threads, flags)


@pytest.fixture
def threads(always_teams):
    """Restores torch's thread count."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def results(module, x, h0, lengths=None):
    """y, h_n and every gradient."""
    x, h0 = x.clone().requires_grad_(), h0.clone().requires_grad_()
    y, h_n = module(x if lengths is None else pack_padded_sequence(x, lengths), h0)
    y = y if lengths is None else y.data
    loss = y.square().sum() + h_n.sum()
    return [y.detach(), h_n.detach(), *torch.autograd.grad(loss, [x, h0, *module.parameters()])]


CASES = {
    # T, B, I, H, bidirectional, sequences of several lengths
    "columns": (40, 1, 5, 300, False, False),
    "columns, windows": (900, 1, 3, 200, False, False),
    "columns, directions": (20, 1, 40, 250, True, False),
    "few rows": (1, 2, 40, 700, False, False),
    "few rows, directions": (2, 2, 40, 300, True, False),
    "slices": (9, 50, 30, 70, False, False),
    "slices, hoisted": (9, 6, 30, 70, True, False),
    "turns and tail": (60, 11, 20, 170, False, True),
    "turns and tail, windows": (200, 11, 3, 170, False, True),
}


@pytest.mark.parametrize("backend", EXACT)
@pytest.mark.parametrize("enters", [False, True], ids=["never", "after"])
@pytest.mark.parametrize(("count", "present"), [(2, {0}), (2, {1}), (4, {2}), (5, {1, 3})])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_threads_do_the_work_of_absent_ones(
    case, count, present, enters, backend, threads, monkeypatch
):
    T, B, I, H, bidirectional, packed = case
    torch.manual_seed(0)
    rnn = nn.RNN(I, H, bidirectional=bidirectional)
    fast = rnnjit.compile(rnn, backend=backend)
    x, h0 = torch.randn(T, B, I), torch.randn(1 + bidirectional, B, H)
    lengths = torch.linspace(T, 1, B).round().long() if packed else None
    threads(1)
    alone = results(fast, x, h0, lengths)
    team = LateTeam(openmp().parallel, present, enters=enters)
    monkeypatch.setattr(openmp(), "parallel", team)
    threads(count)
    found = results(fast, x, h0, lengths)
    assert (team.teams, team.stuck) == (2, False)
    exact = results(rnn.double(), x.double(), h0.double(), lengths)
    for ours, same, true in zip(found, alone, exact, strict=True):
        assert torch.equal(ours, same)
        torch.testing.assert_close(ours.double(), true, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("backend", EXACT)
@pytest.mark.parametrize("packed", [False, True], ids=["dense", "packed"])
@pytest.mark.parametrize("count", [2, 4])
def test_threads_may_join_in_the_middle(count, packed, backend, threads, monkeypatch):
    torch.manual_seed(0)
    module = rnnjit.compile(nn.RNN(3, 170), backend=backend)
    B = 6 if packed else 1
    x, h0 = torch.randn(500, B, 3), torch.randn(1, B, 170)
    lengths = torch.linspace(500, 1, B).round().long() if packed else None
    threads(1)
    begun = time.perf_counter()
    alone = results(module, x, h0, lengths)
    took = time.perf_counter() - begun
    team = SlowTeam(openmp().parallel)
    monkeypatch.setattr(openmp(), "parallel", team)
    threads(count)
    for i in range(25):
        team.delay = took * i / 40
        for ours, same in zip(results(module, x, h0, lengths), alone, strict=True):
            assert torch.equal(ours, same)

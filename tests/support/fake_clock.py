"""A clock that only moves when a test moves it, for measurements with known times."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import repeat

from rnnjit.reference import ReferenceBackend


class FakeClock:
    """Replaces the clock and the count of preemptions that `rnnjit.runtime.timing` reads.

    Attributes:
        now: nanoseconds.
        preempted: how often the process lost a processor.
    """

    def __init__(self, monkeypatch):
        self.now = self.preempted = 0
        monkeypatch.setattr("rnnjit.runtime.timing.perf_counter_ns", lambda: self.now)
        monkeypatch.setattr("rnnjit.runtime.timing.preemptions", lambda: self.preempted)


class Timed(ReferenceBackend):
    """The reference, and each call takes as long as a test says.

    Args:
        clock: is moved by every forward pass.
        name: of the backend.
        priority: of the backend.
        seconds: of every call.
        noise: for each call after another, what a neighbour adds: seconds, and preemptions.
        error: what every call raises.
        compiles: seconds that the backend says it compiles for.
    """

    def __init__(
        self, clock, name, priority, seconds, *, noise: Iterator = (), error=None, compiles=0.0
    ):
        self.clock, self.name, self.priority = clock, name, priority
        self.seconds, self.noise, self.error = seconds, iter(noise or repeat((0.0, 0))), error
        self.compiles = compiles
        self.calls, self.reasons = 0, []

    def compile_seconds(self, spec, problem):
        return self.compiles

    def why_not(self, spec, problem):
        return self.reasons

    def forward(self, *args):
        self.calls += 1
        if self.error:
            raise self.error
        added, preempted = next(self.noise)
        self.clock.now += round((self.seconds + added) * 1e9)
        self.clock.preempted += preempted
        return super().forward(*args)

"""Times callables: samples of one, or interleaved samples of several."""

from __future__ import annotations

import gc
import importlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter_ns
from typing import Any

import numpy as np

try:
    resource: Any = importlib.import_module("resource")
except ImportError:  # Windows has none
    resource = None

MIN_SAMPLE = 1e-3
"""The least seconds of a sample, so that the cost of reading the clock is negligible."""

MARGIN = 1.1
"""Times whose ratio is smaller are taken to be equal: quiet machines repeat no closer."""

# Alone on a core, a thread gives way to the system's own threads a few times a second. Beside a
# program that computes, it does so at the end of every time slice, which lasts 4 to 12 ms.
_PREEMPTIONS_PER_SECOND = 20.0
_FEWEST_QUIET = 0.2

#: `(call, calls) -> seconds`: mean time of one of `calls` consecutive calls, see `sample`.
Clock = Callable[[Callable[[], object], int], float]


@dataclass(frozen=True)
class Timing:
    """How long one call takes, in seconds, over the samples of all rounds.

    Attributes:
        median: the median of the samples.
        p20: the 20th percentile of the samples.
        p80: the 80th percentile of the samples.
        rounds: the number of samples.
        calls: the number of calls of which each sample is the mean.
        least: the least sample. Other programs only ever add to a time, so that this is the best
            estimate of the time without them.
        quiet: the number of samples in which the system took no processor from this process to give
            it to another (but for its own short work); all of them where it does not tell.
    """

    median: float
    p20: float
    p80: float
    rounds: int
    calls: int
    least: float
    quiet: int

    @classmethod
    def of(
        cls, samples: Sequence[float], calls: int, preempted: Sequence[int] | None = None
    ) -> Timing:
        """The quantiles of samples, each the mean of `calls` calls.

        Args:
            samples: seconds of one call.
            calls: calls in each sample.
            preempted: what `preemptions` counted in each sample; None for nothing.
        """
        p20, median, p80 = (float(value) for value in np.percentile(samples, [20, 50, 80]))
        counts = preempted or [0] * len(samples)
        quiet = sum(
            count <= seconds * calls * _PREEMPTIONS_PER_SECOND
            for seconds, count in zip(samples, counts, strict=True)
        )
        return cls(median, p20, p80, len(samples), calls, min(samples), quiet)

    @property
    def settled(self) -> bool:
        """Whether `least` is what the call takes if it is not disturbed: several samples found it.

        If no sample was quiet, or the least one stands alone, a better one may not have been found.
        """
        return self.quiet >= _FEWEST_QUIET * self.rounds and self.p20 <= MARGIN * self.least


def preemptions() -> int:
    """How often the system took a processor from this process for another; 0 if it is unknown."""
    return 0 if resource is None else int(resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw)


def sample(call: Callable[[], object], calls: int) -> float:
    """Measure the mean seconds of one of `calls` consecutive calls."""
    with _no_collection():
        start = perf_counter_ns()
        for _ in range(calls):
            call()
        return (perf_counter_ns() - start) * 1e-9 / calls


def calibrate(
    call: Callable[[], object], min_sample: float = MIN_SAMPLE, clock: Clock = sample
) -> int:
    """Find the number of calls in a sample of `min_sample` seconds; the first call may compile."""
    call()
    calls = 1
    while True:
        lasted = calls * clock(call, calls)
        if lasted >= min_sample:
            return calls
        # Aims 20% beyond, and at most tenfold, since a very short sample is unreliable.
        calls = math.ceil(calls * min(10.0, 1.2 * min_sample / max(lasted, 1e-9)))


def interleave(
    candidates: Mapping[str, Callable[[], object]],
    *,
    rounds: int = 15,
    min_sample: float = MIN_SAMPLE,
    clock: Clock = sample,
    on_round: Callable[[], None] | None = None,
) -> dict[str, Timing]:
    """Time each candidate once in every round, A B A B, so that drift affects all of them alike.

    Every candidate is first called untimed, which compiles it and finds the number of calls in a
    sample. Each sample also starts with an untimed call, which warms the caches. The garbage
    collector is off during samples.

    Args:
        candidates: the callables, by name; each is called without arguments.
        rounds: samples of each candidate, at least 1.
        min_sample: least seconds of a sample.
        clock: takes a sample; calls on other devices need a clock that synchronises.
        on_round: called after each round, for a progress bar.

    Returns:
        A `Timing` for each candidate, by its name.

    Raises:
        ValueError: `rounds` is less than 1.

    Example:
        >>> times = interleave({"sum": lambda: sum(range(100))}, rounds=3)
        >>> times["sum"].rounds
        3
    """
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1, got {rounds}")
    calls = {name: calibrate(call, min_sample, clock) for name, call in candidates.items()}
    samples: dict[str, list[float]] = {name: [] for name in candidates}
    preempted: dict[str, list[int]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, call in candidates.items():
            call()
            before = preemptions()
            samples[name].append(clock(call, calls[name]))
            preempted[name].append(preemptions() - before)
        if on_round is not None:
            on_round()
    return {name: Timing.of(samples[name], calls[name], preempted[name]) for name in candidates}


@contextmanager
def _no_collection() -> Iterator[None]:
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()

"""Times callables: samples of one, or interleaved samples of several."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter_ns

import numpy as np

MIN_SAMPLE = 1e-3
"""The least seconds of a sample, so that the cost of reading the clock is negligible."""

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
    """

    median: float
    p20: float
    p80: float
    rounds: int
    calls: int

    @classmethod
    def of(cls, samples: Sequence[float], calls: int) -> Timing:
        """The quantiles of samples, each the mean of `calls` calls."""
        p20, median, p80 = (float(value) for value in np.percentile(samples, [20, 50, 80]))
        return cls(median, p20, p80, len(samples), calls)


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
    for _ in range(rounds):
        for name, call in candidates.items():
            call()
            samples[name].append(clock(call, calls[name]))
        if on_round is not None:
            on_round()
    return {name: Timing.of(samples[name], calls[name]) for name in candidates}


@contextmanager
def _no_collection() -> Iterator[None]:
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()

"""The findings of a report: means, cases in which peers are faster, and cases without times."""

from __future__ import annotations

import math
from typing import NamedTuple

from rnnjit.bench.cases import MEMORY
from rnnjit.bench.records import Case, ContestantInfo, Mode, Verdict
from rnnjit.bench.report.results import Results, Slice, extras


class Mean(NamedTuple):
    """The geometric mean of a contestant's ratios to eager.

    Attributes:
        contestant: the contestant.
        ratio: times as fast as eager; None without any time.
        cases: number of cases with a ratio, which are in the mean.
        asked: number of cases that the contestant was given.
    """

    contestant: ContestantInfo
    ratio: float | None
    cases: int
    asked: int


class Least(NamedTuple):
    """The case in which a contestant does worst against eager.

    Attributes:
        ratio: times as fast as eager.
        case: the case.
    """

    ratio: float
    case: Case


class Faster(NamedTuple):
    """A case in which a peer, or eager itself, is faster than every backend of rnnjit.

    Attributes:
        case: the case.
        contestant: the fastest contestant.
        factor: times as fast as the fastest backend; None if no backend has a time.
        backend: the fastest backend; None if no backend has a time.
        clear: whether the contestant's p80 is below the backend's p20.
    """

    case: Case
    contestant: ContestantInfo
    factor: float | None
    backend: ContestantInfo | None
    clear: bool


class Exactness(NamedTuple):
    """The largest error of a contestant over cases of one mode and dtype, and eager's.

    Attributes:
        error: largest absolute difference from eager in float64; None if unknown.
        eager: the same for eager, over the same cases.
    """

    error: float | None
    eager: float | None


class Untimed(NamedTuple):
    """Cases for which a contestant has no time, all for the same reason."""

    contestant: ContestantInfo
    verdict: Verdict
    reason: str
    cases: tuple[Case, ...]


def means(results: Results) -> dict[Slice, list[Mean]]:
    """The geometric means of all contestants but eager, over the grid, or all shapes without one.

    Cold starts are excluded: their ratios would compare compiling with not compiling.
    """
    found = {}
    for part, cases in results.slices(results.shapes(cold=False)).items():
        grid = [case for case in cases if case.group == "grid"]
        found[part] = [
            _mean(results, contestant, grid or cases)
            for contestant in results.contestants
            if contestant.kind != "baseline"
        ]
    return found


def least(results: Results) -> dict[Slice, dict[str, Least]]:
    """The least ratio to eager by contestant, over all shapes but cold starts, variants included.

    Contestants without any ratio are left out.
    """
    found: dict[Slice, dict[str, Least]] = {}
    for part, cases in results.slices(results.shapes(cold=False)).items():
        for contestant in results.contestants:
            ratios = [
                Least(ratio, case)
                for case in cases
                if (ratio := results.ratio(contestant.name, case)) is not None
            ]
            if ratios and contestant.kind != "baseline":
                lowest = min(ratios, key=lambda entry: entry.ratio)
                found.setdefault(part, {})[contestant.name] = lowest
    return found


def memory(results: Results) -> dict[Case, dict[str, int]]:
    """The memory of a training step of the shape `MEMORY`, in bytes, by case and contestant."""
    found: dict[Case, dict[str, int]] = {}
    for case in results.cases:
        if case.mode != "training" or case.group != "grid" or extras(case):
            continue
        if (case.T, case.B, case.I, case.H) == MEMORY:
            for contestant in results.contestants:
                measurement = results.of(contestant.name, case)
                if measurement is not None and measurement.memory is not None:
                    found.setdefault(case, {})[contestant.name] = measurement.memory
    return found


def faster(results: Results) -> list[Faster]:
    """Every case in which the fastest is not a backend of rnnjit, the largest factor first."""
    found = [f for case in results.cases if (f := _faster(results, case)) is not None]
    return sorted(found, key=lambda f: -(f.factor or float("inf")))


def exactness(results: Results) -> dict[tuple[Mode, str], dict[str, Exactness]]:
    """Errors by (mode, dtype), then by contestant; cases with wrong results are included."""
    found: dict[tuple[Mode, str], dict[str, Exactness]] = {}
    for m in results.report.measurements:
        if m.error is None:
            continue
        place = found.setdefault((m.case.mode, m.case.dtype), {})
        before = place.get(m.contestant, Exactness(None, None))
        place[m.contestant] = Exactness(
            _largest(before.error, m.error), _largest(before.eager, m.eager_error)
        )
    return found


def untimed(results: Results) -> list[Untimed]:
    """The contestants without times, with their cases, grouped by reason."""
    found: dict[tuple[str, Verdict, str], list[Case]] = {}
    for m in results.report.measurements:
        if m.verdict != "right":
            found.setdefault((m.contestant, m.verdict, m.reason), []).append(m.case)
    return [
        Untimed(results.named(name), verdict, reason, tuple(cases))
        for (name, verdict, reason), cases in found.items()
    ]


def _largest(one: float | None, other: float | None) -> float | None:
    """The larger one; NaN counts as larger than all numbers."""
    if one is None or other is None:
        return other if one is None else one
    return one if math.isnan(one) or one > other else other


def _mean(results: Results, contestant: ContestantInfo, cases: list[Case]) -> Mean:
    asked = sum(results.of(contestant.name, case) is not None for case in cases)
    mean = results.mean_ratio(contestant.name, cases)
    if mean is None:
        return Mean(contestant, None, 0, asked)
    return Mean(contestant, *mean, asked)


def _faster(results: Results, case: Case) -> Faster | None:
    timed = {
        contestant.name: (seconds, contestant)
        for contestant in results.contestants
        if (seconds := results.seconds(contestant.name, case)) is not None
    }
    if not timed:
        return None
    least, first = min(timed.values(), key=lambda entry: entry[0])
    ours = [entry for entry in timed.values() if entry[1].kind == "backend"]
    if first.kind == "backend":
        return None
    if not ours:
        return Faster(case, first, None, None, clear=True)
    own, backend = min(ours, key=lambda entry: entry[0])
    if own <= least:  # a tie
        return None
    ahead, behind = results.of(first.name, case), results.of(backend.name, case)
    clear = False
    if ahead is not None and behind is not None:
        # Without percentiles the medians are compared.
        clear = (ahead.p80 or least) < (behind.p20 or own)
    return Faster(case, first, own / least, backend, clear)

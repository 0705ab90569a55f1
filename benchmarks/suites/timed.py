"""Checks a call, times it, and says how near it comes to what the machine can do."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import pytest

from rnnjit.bench.records import Case, Machine
from rnnjit.bench.roofline import bound, work
from rnnjit.testing.calls import build
from rnnjit.testing.cases import Case as KitCase
from rnnjit.testing.compare import Standard, compare
from suites.cases import for_kit
from suites.contestants import compiled, declines
from suites.memory import peak_growth
from suites.passes import Prepare, Ready


class Timed:
    """One benchmark: what pytest-benchmark's fixture does, and what is known of the call.

    Args:
        benchmark: pytest-benchmark's fixture.
        machine: what this machine does at most; None if nothing is timed.
    """

    def __init__(self, benchmark: Any, machine: Machine | None) -> None:
        self._benchmark, self._machine = benchmark, machine

    def __call__(
        self,
        mode: str,
        case: Case,
        contestant: str,
        prepare: Prepare,
        *,
        frames: int | None = None,
        flops: float | None = None,
    ) -> None:
        """Judge the values of a call, measure its memory, and time it.

        Args:
            mode: what the call does, as the group says it.
            case: the call.
            contestant: who computes it.
            prepare: makes it ready.
            frames: steps that are judged, where a call is a single one.
            flops: of the call, where they are not those of the case; then it has no roofline.

        Raises:
            AssertionError: the values are off by more than the kit's tolerances.
        """
        kit_case = for_kit(case, frames=frames)
        call = build(kit_case)
        why = declines(contestant, kit_case.spec, kit_case.problem(needs_grad=kit_case.training))
        if why:
            pytest.skip(f"{contestant} declines it: {why}")
        ready = prepare(compiled(call.module, contestant), call)
        check(prepare, ready, kit_case)
        with ready.context():
            self.describe(mode, case, contestant)
            self._benchmark.extra_info["peak_memory"] = peak_growth(ready.run)
            self._benchmark(ready.run)
        self._add_shares(case, flops)

    def describe(self, mode: str, case: Case, contestant: str) -> None:
        """Group the benchmark and note what is called; before it runs, which is when it counts."""
        kind = f"{case.dtype}{', packed' if case.packed else ''}"
        self._benchmark.group = f"{mode}, T={case.T} B={case.B} I={case.I} H={case.H}, {kind}"
        self._benchmark.extra_info.update(
            backend=contestant,
            mode=mode,
            **{name: getattr(case, name) for name in ("T", "B", "I", "H", "dtype", "packed")},
            threads=case.threads,
        )

    def _add_shares(self, case: Case, flops: float | None) -> None:
        if self._machine is None or self._benchmark.stats is None:
            return
        seconds = self._benchmark.stats.stats.median
        self._benchmark.extra_info.update(shares(case, seconds, self._machine, flops))


def check(prepare: Prepare, ready: Ready, case: KitCase) -> None:
    """Judge the values of what `prepare` made ready by eager's, with the kit's tolerances.

    Raises:
        AssertionError: they are off by more.
    """
    compare(ready.values(), _standard(prepare, case))


def shares(
    case: Case, seconds: float, machine: Machine, flops: float | None = None
) -> dict[str, float | str | None]:
    """How much of what the machine can do a call does.

    Args:
        case: the call.
        seconds: that it takes.
        machine: where.
        flops: of the call, where they are not those of the case; then it has no roofline.

    Returns:
        "flops" of the call; "share_of_peak", the operations a second over the most that the machine
        does, None where that is not known; "bound" and "share_of_bound" as in
        `rnnjit.bench.roofline.Bound`, None where that is not known.
    """
    needed = work(case).flops if flops is None else flops
    key = case.dtype, case.threads
    peak = next((p.flops for p in machine.peaks if (p.dtype, p.threads) == key), None)
    roof = bound(case, seconds, machine) if flops is None else None
    return {
        "flops": needed,
        "share_of_peak": None if peak is None else needed / seconds / peak,
        "bound": None if roof is None else roof.name,
        "share_of_bound": None if roof is None else roof.share,
    }


@lru_cache(maxsize=1)  # contestants follow one another
def _standard(prepare: Prepare, case: KitCase) -> Standard:
    """What eager gives, and how exactly."""
    return Standard(lambda module, call: prepare(module, call).values(), build(case))

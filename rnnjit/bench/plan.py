"""How a benchmark measures: how often, and how long."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rnnjit.bench.contestants.base import Contestant
from rnnjit.bench.records import Case

_START = 2.5  # seconds until a process has imported its libraries, about
_JUDGING = 0.1


@dataclass(frozen=True)
class Plan:
    """How a benchmark measures.

    Attributes:
        rounds: samples of each contestant, taken in turns.
        sample: seconds that a sample lasts at least.
        pause: seconds between two samples, in which threads that spin go to sleep: those of
            onnxruntime spin for 40 ms, OpenMP's for 10, others not at all.
        most: seconds of samples after which a contestant has had enough rounds, if it has had 3.
        starts: processes that a cold start is measured on.
        longest: seconds that getting ready may take, about: who needs more is left out.
        memory: whether processes' growth is measured.
        timeout: seconds that a process may take to answer.
    """

    rounds: int = 15
    sample: float = 0.02
    pause: float = 0.05
    most: float = 5.0
    starts: int = 3
    longest: float = 60.0
    memory: bool = True
    timeout: float = 300.0

    def preparing(self, contestant: Contestant, case: Case) -> float:
        """About how many seconds the work before the rounds takes."""
        if case.cold:
            return self.starts * (_START + contestant.setup_seconds(case))
        return contestant.setup_seconds(case) * (1.3 if self.memory else 1.0) + 2 * self.sample

    def leaves_out(self, contestant: Contestant, case: Case) -> str:
        """Why there is no time for a contestant; "" if there is."""
        needed = contestant.setup_seconds(case)
        if needed <= self.longest:
            return ""
        return f"getting ready takes about {needed:.3g} s: this plan allows {self.longest:.3g}"

    def round(self, trials: int) -> float:
        """About how many seconds one round of so many takes."""
        return trials * (self.pause + 1.5 * self.sample)

    def seconds(self, cases: Sequence[Case], contestants: Sequence[Contestant]) -> float:
        """About how many seconds all cases take."""
        found = 0.0
        for case in cases:
            taking = [
                each
                for each in contestants
                if not self.leaves_out(each, case) and not _declines(each, case)
            ]
            found += _JUDGING + sum(self.preparing(each, case) for each in taking)
            if not case.cold:
                found += self.rounds * self.round(len(taking))
        threads = {case.threads for case in cases}
        return found + len(threads) * len(contestants) * _START


def _declines(contestant: Contestant, case: Case) -> bool:
    try:
        return bool(contestant.declines(case))
    except Exception:  # noqa: BLE001 - it will fail where that is a result
        return True

"""The plan of a benchmark: numbers of samples, durations and limits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rnnjit.bench.contestants.base import Contestant
from rnnjit.bench.records import Case

_START = 2.5  # about how many seconds a process takes to import its libraries
_JUDGING = 0.1


@dataclass(frozen=True)
class Plan:
    """How a benchmark measures.

    Attributes:
        rounds: interleaved samples of each contestant.
        sample: least seconds of a sample.
        pause: seconds between two samples, in which spinning threads go to sleep: onnxruntime's
            spin for 40 ms, OpenMP's for 10 ms, others not at all.
        most: seconds of samples after which a contestant gets no more rounds, if it has had 3.
        starts: number of processes in which a cold start is measured.
        longest: most seconds of set-up, estimated; contestants that need more are left out.
        memory: whether to measure the growth of processes.
        timeout: most seconds for a process to reply.
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
        """The expected seconds of set-up before the rounds."""
        if case.cold:
            return self.starts * (_START + contestant.setup_seconds(case))
        return contestant.setup_seconds(case) * (1.3 if self.memory else 1.0) + 2 * self.sample

    def leaves_out(self, contestant: Contestant, case: Case) -> str:
        """Why the plan leaves a contestant out of a case; "" if it does not."""
        needed = contestant.setup_seconds(case)
        if needed <= self.longest:
            return ""
        return f"getting ready takes about {needed:.3g} s: this plan allows {self.longest:.3g}"

    def round(self, trials: int) -> float:
        """The expected seconds of a round of `trials` samples."""
        return trials * (self.pause + 1.5 * self.sample)

    def seconds(self, cases: Sequence[Case], contestants: Sequence[Contestant]) -> float:
        """The expected seconds of all cases."""
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
    except Exception:  # noqa: BLE001 - when the case is measured, it fails as a result
        return True

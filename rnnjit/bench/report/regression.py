"""Compares two reports case by case, to find regressions.

It compares ratios to eager within the same run, since a slower machine slows eager as well. Only
rnnjit's backends are compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from rnnjit.bench.records import Case, Report, Verdict
from rnnjit.bench.report.results import Results


class Change(NamedTuple):
    """A backend in a case in which it was right before.

    Attributes:
        backend: name of the backend.
        case: the case.
        before: times as fast as eager, in the old report.
        after: the same in the new report; None if it has no time there.
        verdict: the verdict in the new report.
        reason: why there is no time in the new report.
    """

    backend: str
    case: Case
    before: float
    after: float | None
    verdict: Verdict
    reason: str

    @property
    def slower(self) -> float:
        """How many times as long as before a call takes, relative to eager."""
        return float("inf") if self.after is None else self.before / self.after


def changes(old: Report, new: Report) -> list[Change]:
    """Every backend in every case that both reports contain, in the order of the new one.

    Backends that had no time in the old report or are absent in the new one are left out. Ratios to
    different baselines do not compare: there are none then.
    """
    before, after = Results(old), Results(new)
    if before.baseline != after.baseline:
        return []
    names = [each.name for each in new.contestants if each.kind == "backend" and not each.absent]
    found = []
    for case in after.cases:
        for name in names:
            was, now = before.ratio(name, case), after.of(name, case)
            if was is None or now is None:
                continue
            ratio = after.ratio(name, case)
            if ratio is None and now.verdict == "right":
                continue  # eager has no time to compare with
            found.append(Change(name, case, was, ratio, now.verdict, now.reason))
    return found


def slower(found: Sequence[Change], factor: float) -> list[Change]:
    """The changes that are slower by more than `factor`, or have no time any more."""
    return [change for change in found if change.slower > factor]

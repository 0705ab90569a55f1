"""Before and after: two reports, case by case.

What is compared is the ratio to eager, each of its own run: where a machine is slower today, eager
is, too. Only rnnjit's backends count.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from rnnjit.bench.records import Case, Report, Verdict
from rnnjit.bench.report.results import Results


class Change(NamedTuple):
    """A backend in a case that it was right in before.

    Attributes:
        backend: its name.
        case: in which.
        before: times as fast as eager.
        after: the same now; None if it has no time any more.
        verdict: of now.
        reason: why there is no time.
    """

    backend: str
    case: Case
    before: float
    after: float | None
    verdict: Verdict
    reason: str

    @property
    def slower(self) -> float:
        """How many times as long as before a call takes, by eager's measure."""
        return float("inf") if self.after is None else self.before / self.after


def changes(old: Report, new: Report) -> list[Change]:
    """Every backend in every case that both reports asked it for, in the order of the new one.

    One that had no time before is left out, and so is one that is absent now.
    """
    before, after = Results(old), Results(new)
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
    """Those that are slower by more than a factor, or wrong, failed or declined now."""
    return [change for change in found if change.slower > factor]

"""Queries on a report: measurements by contestant and case, ratios to eager, sweeps."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import msgspec

from rnnjit.bench import roofline
from rnnjit.bench.kinds import KINDS, kind_of
from rnnjit.bench.records import Case, CellName, ContestantInfo, Measurement, Mode, Report
from rnnjit.bench.roofline import Bound

#: The cell that goes without saying.
DEFAULT_CELL: CellName = "rnn"
#: Groups that may be sweeps: their cases differ in the field of the same name.
_SWEPT = ("T", "B", "I", "H", "layers", "threads")


class Slice(NamedTuple):
    """The properties that comparable cases have in common."""

    mode: Mode
    dtype: str
    threads: int
    cell: CellName = "rnn"

    def __str__(self) -> str:
        """The slice in words; nn.RNN goes without saying."""
        return ", ".join([*layer_words(self.cell), self.mode, self.dtype, threads(self.threads)])

    @property
    def key(self) -> str:
        """An identifier, of letters, digits and hyphens."""
        cell = [] if self.cell == DEFAULT_CELL else [self.cell]
        return "-".join([*cell, self.mode, self.dtype, str(self.threads)]).replace(" ", "-")


class Sweep(NamedTuple):
    """Cases that differ in one field; a sweep over H may change I as well, if always I = H.

    Attributes:
        field: the field of `Case` that varies.
        cases: two or more cases, the smallest first.
        constant: the other properties, in words.
    """

    field: str
    cases: tuple[Case, ...]
    constant: str


class Results:
    """The measurements of a report, by contestant and case.

    Attributes:
        report: the report.
        cases: the distinct cases, in the report's order.
        contestants: those with measurements, in the report's order.
        sweeps: the sweeps, in the order T, B, I, H, layers, threads.
        baseline: the name of the contestant that ratios refer to.
    """

    def __init__(self, report: Report) -> None:
        self.report = report
        self._found = {(m.contestant, m.case): m for m in report.measurements}
        self._known: dict[str, dict[tuple[str, str, int], float]] = {}
        self.cases = tuple(dict.fromkeys(m.case for m in report.measurements))
        present = {m.contestant for m in report.measurements}
        self.contestants = tuple(c for c in report.contestants if c.name in present)
        self.sweeps = _sweeps(self.cases)
        self.baseline = next((c.name for c in report.contestants if c.kind == "baseline"), "eager")

    def of(self, contestant: str, case: Case) -> Measurement | None:
        """The measurement of a contestant in a case; None if there is none."""
        return self._found.get((contestant, case))

    def seconds(self, contestant: str, case: Case) -> float | None:
        """Seconds of one call; None if it is not right or was not timed."""
        found = self.of(contestant, case)
        return None if found is None else seconds(found)

    def ratio(self, contestant: str, case: Case) -> float | None:
        """How many times as fast as the baseline; None if one of the two has no time."""
        own, eager = self.seconds(contestant, case), self.seconds(self.baseline, case)
        return None if own is None or eager is None else eager / own

    def bound(self, measurement: Measurement) -> Bound | None:
        """How near the time comes to the machine's limit; None without a time or a limit.

        Cold starts have none, since compiling and loading dominate their time.
        """
        taken, case, machine = seconds(measurement), measurement.case, self.report.machine
        if taken is None or case.cold:
            return None
        overhead = self._overheads(measurement.contestant).get(roofline.overhead_key(case))
        return roofline.bound(case, taken, machine, overhead)

    def _overheads(self, contestant: str) -> dict[tuple[str, str, int], float]:
        if contestant not in self._known:
            times = {
                case: taken
                for case in self.cases
                if not case.cold and (taken := self.seconds(contestant, case))
            }
            self._known[contestant] = roofline.overheads(times, self.report.machine)
        return self._known[contestant]

    def slices(self, cases: Iterable[Case]) -> dict[Slice, list[Case]]:
        """Group cases into slices."""
        found: dict[Slice, list[Case]] = {}
        for case in cases:
            part = Slice(case.mode, case.dtype, case.threads, case.cell)
            found.setdefault(part, []).append(case)
        return found

    def shapes(self, *, cold: bool = True) -> tuple[Case, ...]:
        """The cases that are not part of a sweep.

        Args:
            cold: whether to include cold starts.
        """
        swept = {case for sweep in self.sweeps for case in sweep.cases}
        found = (case for case in self.cases if case not in swept)
        return tuple(case for case in found if cold or not case.cold)

    def mean_ratio(self, contestant: str, cases: Iterable[Case]) -> tuple[float, int] | None:
        """Geometric mean of the ratios to eager, and the number of cases in it; None if empty."""
        ratios = [r for case in cases if (r := self.ratio(contestant, case)) is not None]
        if not ratios:
            return None
        return math.exp(sum(map(math.log, ratios)) / len(ratios)), len(ratios)

    def named(self, name: str) -> ContestantInfo:
        """The contestant with this name."""
        return next(c for c in self.report.contestants if c.name == name)


def _sweeps(cases: Iterable[Case]) -> tuple[Sweep, ...]:
    swept = [case for case in cases if case.group in _SWEPT]
    # I varies with H only if I = H in all cases of a family, and not in one case by chance.
    unequal = {_family(case, square=True) for case in swept if case.I != case.H}
    families: dict[Case, list[Case]] = {}
    for case in swept:
        square = _family(case, square=True) not in unequal
        families.setdefault(_family(case, square=square), []).append(case)
    found = [
        Sweep(
            family.group,
            tuple(sorted(members, key=lambda case: getattr(case, family.group))),
            _constant(family),
        )
        for family, members in families.items()
        if len({getattr(case, family.group) for case in members}) > 1
    ]
    return tuple(sorted(found, key=lambda sweep: _SWEPT.index(sweep.field)))


def _family(case: Case, *, square: bool) -> Case:
    """The case with its swept field set to 0; if H is swept and it is `square`, also I."""
    grown = [case.group, "I"] if square and case.group == "H" else [case.group]
    return msgspec.structs.replace(case, **dict.fromkeys(grown, 0))


def _constant(family: Case) -> str:
    sizes = [f"{name}={value}" for name in "TBIH" if (value := getattr(family, name))]
    if family.group == "H" and not family.I:
        sizes.append("I=H")
    count = [threads(family.threads)] if family.threads else []
    return ", ".join([*sizes, *layer_words(family.cell), *extras(family), *count])


def seconds(measurement: Measurement) -> float | None:
    """Seconds of one call: the median, or the first call of a cold start; None without a time."""
    if measurement.verdict != "right":
        return None
    if measurement.p50 is None and measurement.case.cold:
        return measurement.first_call
    return measurement.p50


def shape(case: Case) -> str:
    """T, B, I and H."""
    return ", ".join(map(str, (case.T, case.B, case.I, case.H)))


def described(case: Case) -> str:
    """The shape, the kind of layer, and all options that are not the defaults."""
    return ", ".join([shape(case), *layer_words(case.cell), *extras(case)])


def layer_words(cell: CellName) -> list[str]:
    """The class of a layer, such as "LSTM"; nothing for RNN, which goes without saying."""
    return [] if cell == DEFAULT_CELL else [KINDS[cell].layer]


def extras(case: Case) -> list[str]:
    """The options of a case that are not the defaults, but for the kind of layer."""
    found = [f"{kind_of(case).layer}Cell"] if case.as_cell else []
    found += [f"{case.layers} layers"] if case.layers > 1 else []
    found += ["bidirectional"] if case.bidirectional else []
    found += [case.nonlinearity] if case.nonlinearity != "tanh" else []
    found += [f"proj_size {case.proj_size}"] if case.proj_size else []
    return found + (["packed"] if case.packed else [])


def started(case: Case) -> str:
    """The cache state of a cold start: its group without the prefix "cold start"."""
    return case.group.removeprefix("cold start").removeprefix(", ") or "one call"


def threads(count: int) -> str:
    """A number of threads in words."""
    return "1 thread" if count == 1 else f"{count} threads"


def duration(value: float) -> str:
    """Format seconds with three digits and a unit."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if float(f"{value / scale:.3g}") >= 1.0:
            return f"{value / scale:.3g} {unit}"
    return f"{value * 1e9:.3g} ns"


def times(ratio: float) -> str:
    """Format a ratio, with as many digits as are significant."""
    digits = 2 if ratio < 1.995 else 1 if ratio < 99.95 else 0
    return f"{ratio:.{digits}f}x"


def size(count: float) -> str:
    """Format bytes with a binary unit."""
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= scale:
            return f"{count / scale:.3g} {unit}"
    return f"{count:.0f} B"

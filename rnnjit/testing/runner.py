"""The kit without pytest: `rnnjit.testing.run`."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from rnnjit.backend import Backend
from rnnjit.errors import described
from rnnjit.testing.suite import Pair, device_of, named, pairs

Outcome = Literal["passed", "failed", "declined"]


@dataclass(frozen=True)
class Result:
    """How one check of one case ended.

    Attributes:
        id: `<backend>-<check>-<case>`.
        check: name of the check, a key of `CHECKS`.
        case: id of the case.
        cell: name of the case's cell.
        outcome: "declined" where the backend declines the case, which is then not run.
        message: what is wrong, or the reasons for declining.
        seconds: how long it took.
    """

    id: str
    check: str
    case: str
    cell: str
    outcome: Outcome
    message: str = ""
    seconds: float = 0.0


@dataclass(frozen=True)
class Report:
    """How a backend did.

    Attributes:
        backend: its name.
        missing: why this machine cannot run it; then there are no results.
        results: one for each check of each case, in the order in which they ran.
    """

    backend: str
    missing: tuple[str, ...]
    results: tuple[Result, ...]

    @property
    def passed(self) -> int:
        """How many checks passed."""
        return self._count("passed")

    @property
    def failed(self) -> int:
        """How many checks failed."""
        return self._count("failed")

    @property
    def declined(self) -> int:
        """How many checks were not run because the backend declines the case."""
        return self._count("declined")

    @property
    def failures(self) -> tuple[Result, ...]:
        """The results of the checks that failed."""
        return tuple(result for result in self.results if result.outcome == "failed")

    @property
    def ok(self) -> bool:
        """Whether the backend ran here and nothing failed."""
        return not self.missing and not self.failures

    @property
    def by_cell(self) -> dict[str, Report]:
        """The same for each cell alone, by its name."""
        found: dict[str, list[Result]] = {}
        for result in self.results:
            found.setdefault(result.cell, []).append(result)
        return {
            cell: Report(self.backend, self.missing, tuple(results))
            for cell, results in found.items()
        }

    def _count(self, outcome: Outcome) -> int:
        return sum(result.outcome == outcome for result in self.results)


def run(
    backend: Backend | str,
    *,
    quick: bool = False,
    full: bool = False,
    on_result: Callable[[Result], None] | None = None,
) -> Report:
    """Run the kit on one backend, without pytest.

    Args:
        backend: the name of an installed backend, or an instance.
        quick: run only the quick subset.
        full: run every combination of a layer's options, too; it takes minutes.
        on_result: called after every check, for progress.

    Raises:
        TypeError: `backend` is neither a string nor a `Backend`.
        ValueError: no installed backend has that name, or it is "auto".
    """
    found = named(backend)
    missing = tuple(found.missing())
    results = []
    for pair in () if missing else pairs(quick=quick, full=full, device=device_of(found)):
        results.append(_run(found, pair))
        if on_result is not None:
            on_result(results[-1])
    return Report(found.name, missing, tuple(results))


def count(*, quick: bool = False, full: bool = False) -> int:
    """How many results `run` gives, for a progress bar."""
    return sum(1 for _ in pairs(quick=quick, full=full))


def _run(backend: Backend, pair: Pair) -> Result:
    def result(outcome: Outcome, message: str = "") -> Result:
        seconds = time.perf_counter() - start
        name, case = pair.id_for(backend), pair.case
        return Result(name, pair.name, case.id, case.cell_name, outcome, message, seconds)

    start = time.perf_counter()
    reasons = pair.declined_by(backend)
    if reasons:
        return result("declined", "; ".join(reasons))
    try:
        pair.check.run(backend, pair.case)
    except AssertionError as error:
        return result("failed", str(error))
    except Exception as error:  # noqa: BLE001 - a backend under test may fail in any way
        return result("failed", described(error))
    return result("passed")

"""The forward pass in evaluation mode, over the grid."""

from __future__ import annotations

from measures.speed import GRID

from rnnjit.bench.records import Case
from suites.cases import FLOAT64, SMALL, cases
from suites.passes import forward
from suites.timed import Timed

_REST = tuple(shape for shape in GRID if shape != SMALL)
CASES = cases("forward", (SMALL, *_REST)) + cases("forward", FLOAT64, "float64")


def test_forward(timed: Timed, case: Case, contestant: str) -> None:
    """One call within `torch.no_grad()`."""
    timed("forward", case, contestant, forward)

"""A step of training, over the grid."""

from __future__ import annotations

from measures.speed import GRID

from rnnjit.bench.records import Case
from suites.cases import FLOAT64, SMALL, cases
from suites.passes import training_step
from suites.timed import Timed

_REST = tuple(shape for shape in GRID if shape != SMALL)
CASES = cases("training", (SMALL, *_REST)) + cases("training", FLOAT64, "float64")


def test_training_step(timed: Timed, case: Case, contestant: str) -> None:
    """Forward pass, mean squared error, backward pass, SGD."""
    timed("training step", case, contestant, training_step)

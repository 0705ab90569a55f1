"""The backward pass alone."""

from __future__ import annotations

from rnnjit.bench.records import Case
from rnnjit.bench.roofline import work
from suites.cases import FEW, FLOAT64, cases
from suites.passes import backward
from suites.timed import Timed

CASES = cases("training", FEW) + cases("training", FLOAT64, "float64")


def test_backward(timed: Timed, case: Case, contestant: str) -> None:
    """Gradients of x, h0 and every weight, again and again from one forward pass."""
    flops = work(case).flops * 2 / 3  # the forward pass has the third third
    timed("backward", case, contestant, backward, flops=flops)

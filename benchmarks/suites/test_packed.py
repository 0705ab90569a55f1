"""A PackedSequence whose lengths fall evenly from T to T / B, packed beforehand."""

from __future__ import annotations

import msgspec
from measures.pairs import Shape

from rnnjit.bench.records import Case
from suites.cases import SMALL, cases
from suites.passes import forward, training_step
from suites.timed import Timed

_SHAPES = (SMALL, Shape(100, 8, 128, 256), Shape(100, 32, 128, 256), Shape(1000, 16, 64, 128))
CASES = cases("training", _SHAPES, packed=True)


def test_packed_forward(timed: Timed, case: Case, contestant: str) -> None:
    """One call within `torch.no_grad()`."""
    timed("forward", msgspec.structs.replace(case, mode="forward"), contestant, forward)


def test_packed_training_step(timed: Timed, case: Case, contestant: str) -> None:
    """Forward pass, mean squared error, backward pass, SGD."""
    timed("training step", case, contestant, training_step)

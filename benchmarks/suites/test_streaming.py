"""A streaming step: one frame a call, the state going on from call to call."""

from __future__ import annotations

from measures.pairs import Shape

from rnnjit.bench.records import Case
from suites.cases import cases
from suites.passes import streaming_step
from suites.timed import Timed

_FRAMES = 8
CASES = cases(
    "streaming",
    (Shape(1, 1, 32, 64), Shape(1, 1, 128, 256), Shape(1, 8, 128, 256), Shape(1, 1, 512, 512)),
)


def test_streaming(timed: Timed, case: Case, contestant: str) -> None:
    """`rnnjit.Stream.step`, and eager called with the state that it gave before."""
    timed("streaming step", case, contestant, streaming_step, frames=_FRAMES)

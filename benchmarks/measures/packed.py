"""Sequences of unequal length: against the dense call of as many rows, and against eager."""

from __future__ import annotations

import rnnjit
from measures.pairs import BOTH, FORWARD, PASSES, PLAIN, Bench, Shape, Variant, bound
from measures.report import Section

PACKED = Variant("packed", packed=True)
_SHAPES = (
    Shape(100, 8, 128, 256),
    Shape(100, 32, 128, 256),
    Shape(100, 64, 512, 512),
    Shape(1000, 16, 64, 128),
)
_LONG = Shape(4000, 16, 64, 128)
_LONG_QUICK = Shape(200, 16, 64, 128)


def packed(bench: Bench, section: Section) -> None:
    """The bars are on time per valid row, and on one long batch against eager."""
    for passes in PASSES:
        shapes = _SHAPES[:1] if bench.quick else _SHAPES
        worst = max(_over_dense(bench, section, shape, passes) for shape in shapes)
        section.at_most(f"{passes}: packed time per valid row over dense, most", worst, 1.1)
    shape = _LONG_QUICK if bench.quick else _LONG
    for passes, bar in ((FORWARD, 10.0), (BOTH, 60.0)):
        # A backward pass of eager takes seconds.
        pair = bench.measure(shape, PACKED, passes, rounds=2 if passes == BOTH else 0)
        _record(section, "eager", shape, passes, pair.eager.median, pair.compiled.median)
        section.at_least(f"{passes}: packed ({shape})", pair.ratio, bar)


def _over_dense(bench: Bench, section: Section, shape: Shape, passes: str) -> float:
    """Time per valid row over the dense call's time per row, both compiled."""
    rnn = PLAIN.module(shape)
    module = rnnjit.compile(rnn)
    dense, ragged = PLAIN.call(rnn, shape), PACKED.call(rnn, shape)
    calls = {"dense": bound(module, dense, passes), "packed": bound(module, ragged, passes)}
    times = bench.timed(calls, passes)
    as_many = times["dense"].median * ragged.x.shape[0] / (shape.T * shape.B)
    _record(section, "dense, as many rows", shape, passes, as_many, times["packed"].median)
    return times["packed"].median / as_many


def _record(
    section: Section, against: str, shape: Shape, passes: str, other: float, own: float
) -> None:
    names = {"against": against, "T, B, I, H": str(shape), "pass": passes}
    section.record(**names, against_ms=other * 1e3, packed_ms=own * 1e3, times_faster=other / own)

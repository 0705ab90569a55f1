"""Any shape: where eager is faster, how times grow, what tile edges and new shapes cost."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from itertools import pairwise
from time import perf_counter
from unittest.mock import patch

import rnnjit
from measures.pairs import BOTH, PASSES, PLAIN, Bench, Shape, bound
from measures.report import Section
from rnnjit import codecache
from rnnjit.bench import Timing
from rnnjit_numba import library

_SHAPE = "T, B, I, H"
_LARGEST = Shape(2000, 256, 2048, 2048)
#: Multiply-adds of the largest forward pass in the sample, so that it comes to an end.
_MOST_WORK = 1e9
_SHOWN = 10
#: A time over that of half the size up to which growth passes for linear.
_DOUBLING = 2.3
_GROWTH = {
    "T": [Shape(T, 32, 128, 256) for T in (50, 100, 200, 400, 800, 1600)],
    "B": [Shape(50, B, 128, 256) for B in (16, 32, 64, 128, 256)],
}
_EDGES = {
    "H=255, 256, 257 at B=32": [Shape(100, 32, 128, H) for H in (255, 256, 257)],
    "H=255, 256, 257 at B=1": [Shape(100, 1, 128, H) for H in (255, 256, 257)],
    "B=15, 16, 17": [Shape(100, B, 128, 256) for B in (15, 16, 17)],
}


def anywhere(bench: Bench, section: Section) -> None:
    """Random shapes, as many as there is time for; the worst are shown.

    A shape that does not look clearly faster is measured again with more samples, which count.
    """
    found: list[dict[str, object]] = []
    slower = dict.fromkeys(PASSES, 0)
    end = perf_counter() + bench.sample_seconds
    shapes = random_shapes(seed=0)
    count = 0
    try:
        while perf_counter() < end:
            shape = next(shapes)
            count += 1
            for passes in PASSES:
                pair = bench.measure(shape, PLAIN, passes, 5, 0.3)
                if pair.ratio < 1.1:
                    pair = bench.measure(shape, PLAIN, passes, 25, 1.5)
                slower[passes] += pair.ratio < 1
                found.append({_SHAPE: str(shape), "pass": passes, **pair.columns()})
                section.progress(shape, passes, pair.ratio)
    finally:
        found.sort(key=lambda record: float(str(record["ratio"])))
        section.records = found[:_SHOWN]
        section.data["sample"] = found
        for passes in PASSES:
            worst = [r["ratio"] for r in found if r["pass"] == passes]
            if worst:
                what = f"{passes}: slower than eager, of {count} random shapes"
                section.at_most(what, slower[passes], 0, "shapes")
                section.note(f"{passes}: least ratio", float(str(worst[0])))


def random_shapes(seed: int) -> Iterator[Shape]:
    """Shapes whose sizes are log-uniform from 1 on, without those that would take too long."""
    generator = random.Random(seed)
    while True:
        shape = Shape(*(round(most ** generator.random()) for most in _LARGEST))
        if shape.T * shape.B * shape.H * (shape.I + shape.H) <= _MOST_WORK:
            yield shape


def growth(bench: Bench, section: Section) -> None:
    """Time over T and B, time at tile edges, and what a shape that is new costs."""
    for size, shapes in _GROWTH.items():
        for passes in PASSES:
            shown = shapes[:3] if bench.quick else shapes
            times = [time.median for time in _alone(bench, shown, passes)]
            ratios = [large / small for small, large in pairwise(times)]
            for shape, time, ratio in zip(shown, times, [None, *ratios], strict=True):
                _record(section, f"doubling {size}", shape, passes, time, ratio)
            what = f"{passes}: most that doubling {size} multiplies the time by"
            section.at_most(what, max(ratios), _DOUBLING)
    for edge, shapes in _EDGES.items():
        for passes in PASSES:
            times = [time.median for time in _alone(bench, shapes, passes)]
            costs = [time / _work(shape) for time, shape in zip(times, shapes, strict=True)]
            for shape, time, cost in zip(shapes, times, costs, strict=True):
                _record(section, edge, shape, passes, time, cost / min(costs))
            cliff = 100 * (max(costs) / min(costs) - 1)
            section.at_most(f"{passes}: {edge}, spread of time per work", cliff, 30.0, "%")
    _new_shapes(section)


def _record(
    section: Section, what: str, shape: Shape, passes: str, time: float, relative: float | None
) -> None:
    names = {"what": what, _SHAPE: str(shape), "pass": passes}
    section.record(**names, rnnjit_ms=time * 1e3, relative=relative)


def _alone(bench: Bench, shapes: Sequence[Shape], passes: str) -> list[Timing]:
    """Times of several shapes, without eager."""
    calls = {}
    for shape in shapes:
        rnn = PLAIN.module(shape)
        calls[str(shape)] = bound(rnnjit.compile(rnn), PLAIN.call(rnn, shape), passes)
    return list(bench.timed(calls, passes).values())


def _work(shape: Shape) -> int:
    return shape.T * shape.B * shape.H * (shape.I + shape.H)


def _new_shapes(section: Section) -> None:
    """Calls of shapes never seen before: what is compiled, and how long the first one takes."""
    _first_and_second(Shape(3, 3, 3, 3))
    kept = _files()
    slowest = 0.0
    shapes = [Shape(2 + i, 1 + 3 * i, 5 + 7 * i, 6 + 11 * i) for i in range(12)]
    with patch.object(library, "compile_kernels", wraps=library.compile_kernels) as compiling:
        for shape in shapes:
            first, second = _first_and_second(shape)
            slowest = max(slowest, first - second)
    section.at_most(f"kernels compiled for {len(shapes)} new shapes", compiling.call_count, 0, "")
    section.at_most("files that they added to the cache", len(_files() - kept), 0, "")
    section.note("most that a first call takes longer than a second", slowest * 1e3, "ms")


def _first_and_second(shape: Shape) -> tuple[float, float]:
    """Seconds of the first and the second forward+backward pass."""
    rnn = PLAIN.module(shape)
    run = bound(rnnjit.compile(rnn), PLAIN.call(rnn, shape), BOTH)
    start = perf_counter()
    run()
    between = perf_counter()
    run()
    return between - start, perf_counter() - between


def _files() -> set[str]:
    place = codecache.directory()
    return {file.name for file in place.glob("*.o")} if place.is_dir() else set()

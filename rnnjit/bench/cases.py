"""The cases of benchmarks, shared by the presets and the suites in `benchmarks/`."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from itertools import product
from typing import Any, NamedTuple

from msgspec import structs

from rnnjit.bench.kinds import offers
from rnnjit.bench.records import Case, CellName, Mode


class Shape(NamedTuple):
    """The sizes of a call: steps, sequences, input features, hidden features."""

    T: int
    B: int
    I: int
    H: int


#: Shapes that are bound by the rate of multiply-adds.
COMPUTE_BOUND = (Shape(100, 64, 512, 512), Shape(20, 128, 1024, 1024))
#: From single steps to large batches: the shapes of the tables in docs/benchmarks.md.
GRID = (
    Shape(1, 1, 32, 64),
    Shape(5, 32, 10, 20),
    Shape(100, 1, 64, 64),
    Shape(100, 1, 128, 256),
    Shape(100, 1, 512, 512),
    Shape(100, 8, 128, 256),
    Shape(100, 32, 128, 256),
    *COMPUTE_BOUND,
    Shape(1000, 16, 64, 128),
    Shape(28, 64, 28, 128),
)
#: Sequences so long that the gradient of a loss on the last state becomes subnormal on the way.
LAST_STATE = (Shape(200, 64, 100, 256),)
#: One frame per call.
STREAMING = (
    Shape(1, 1, 32, 64),
    Shape(1, 1, 64, 128),
    Shape(1, 1, 128, 256),
    Shape(1, 1, 512, 512),
    Shape(1, 8, 128, 256),
    Shape(1, 32, 128, 256),
)
#: The shape of which summaries show how much memory a training step takes.
MEMORY = COMPUTE_BOUND[0]
BOTH: tuple[Mode, ...] = ("forward", "training")
#: Groups of cold starts: without compiled code on disk, or with that of a previous process.
EMPTY_CACHE, FILLED_CACHE = "cold start, empty cache", "cold start, filled cache"


def each(
    shapes: Iterable[tuple[int, int, int, int]],
    modes: Iterable[Mode],
    threads: Iterable[int],
    **rest: Any,
) -> tuple[Case, ...]:
    """Every shape in every mode on every number of threads, grouped by threads.

    Args:
        shapes: T, B, I and H.
        modes: the modes.
        threads: the numbers of threads.
        **rest: further fields of `Case`, the same for all.
    """
    return tuple(
        Case(T=T, B=B, I=I, H=H, mode=mode, threads=count, **rest)
        for count, mode, (T, B, I, H) in product(threads, modes, shapes)
    )


def of_cell(cases: Iterable[Case], cell: CellName) -> tuple[Case, ...]:
    """The same cases of another kind of layer, without those that this kind does not offer."""
    changed = (structs.replace(case, cell=cell) for case in cases)
    return tuple(case for case in changed if offers(case))


def random_shapes(
    least: Shape, most: Shape, most_products: float, seed: int = 0
) -> Iterator[Shape]:
    """Yield random shapes endlessly; each size is distributed log-uniformly.

    Args:
        least: the smallest value of each size.
        most: the largest value of each size.
        most_products: most multiply-adds of a forward pass; shapes with more are skipped.
        seed: seed of the random numbers.
    """
    generator = random.Random(seed)
    while True:
        sizes = zip(least, most, strict=True)
        shape = Shape(*(round(low * (high / low) ** generator.random()) for low, high in sizes))
        products = shape.T * shape.B * shape.H * (shape.I + shape.H)
        if products <= most_products:
            yield shape

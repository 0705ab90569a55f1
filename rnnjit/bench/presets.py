"""What is measured: presets, each a function from numbers of threads to cases."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from msgspec.structs import replace

from rnnjit.bench.plan import EMPTY_CACHE, FILLED_CACHE, Plan
from rnnjit.bench.records import Case, Mode

#: From single steps to large batches: the shapes of the README's table.
GRID = (
    (1, 1, 32, 64),
    (5, 32, 10, 20),
    (100, 1, 64, 64),
    (100, 1, 128, 256),
    (100, 1, 512, 512),
    (100, 8, 128, 256),
    (100, 32, 128, 256),
    (100, 64, 512, 512),
    (20, 128, 1024, 1024),
    (1000, 16, 64, 128),
    (28, 64, 28, 128),
)
_QUICK = (
    (5, 32, 10, 20),
    (28, 64, 28, 128),
    (100, 1, 64, 64),
    (100, 8, 128, 256),
    (100, 32, 128, 256),
)
_FRAMES = ((1, 32, 64), (1, 64, 128), (1, 128, 256), (1, 512, 512), (8, 128, 256), (32, 128, 256))
_PACKED = ((50, 16, 32, 64), (100, 32, 64, 128), (200, 32, 128, 256), (1000, 16, 64, 128))
_BOTH: tuple[Mode, ...] = ("forward", "training")
_CENTRE = Case(T=100, B=16, I=128, H=128)


class Preset(NamedTuple):
    """A choice of cases.

    Attributes:
        about: what it measures, in a few words.
        cases: from the numbers of threads, fewest first, to what is measured.
        plan: how it is measured.
        threads: from the processors to the numbers of threads, where none are asked for.
    """

    about: str
    cases: Callable[[Sequence[int]], tuple[Case, ...]]
    plan: Plan = Plan()
    threads: Callable[[int], tuple[int, ...]] = lambda cpus: (cpus,)


def _each(
    shapes: Sequence[tuple[int, int, int, int]],
    modes: Sequence[Mode],
    threads: Sequence[int],
    like: Case = _CENTRE,
) -> tuple[Case, ...]:
    """Every shape in every mode on every number of threads, grouped by threads."""
    return tuple(
        replace(like, T=T, B=B, I=I, H=H, mode=mode, threads=count)
        for count in threads
        for mode in modes
        for T, B, I, H in shapes
    )


def _quick(threads: Sequence[int]) -> tuple[Case, ...]:
    step = ((1, 1, 32, 64),)
    return _each(_QUICK, _BOTH, threads) + _each(step, ("streaming",), threads)


def _streaming(threads: Sequence[int]) -> tuple[Case, ...]:
    frames = [(1, *shape) for shape in _FRAMES]
    deep = replace(_CENTRE, layers=3, group="layers")
    return _each(frames, ("streaming",), threads) + _each(
        [(1, 1, 128, 128)], ("streaming",), threads, deep
    )


def _training(threads: Sequence[int]) -> tuple[Case, ...]:
    return _each(GRID, ("training",), threads)


def _packed(threads: Sequence[int]) -> tuple[Case, ...]:
    one = replace(_CENTRE, packed=True)
    two = replace(one, bidirectional=True, layers=2, group="bidirectional")
    return _each(_PACKED, _BOTH, threads, one) + _each(_PACKED[1:2], _BOTH, threads, two)


def _full(threads: Sequence[int]) -> tuple[Case, ...]:
    variants = (
        replace(_CENTRE, dtype="float64", group="float64"),
        replace(_CENTRE, nonlinearity="relu", group="relu"),
        replace(_CENTRE, layers=3, group="layers"),
        replace(_CENTRE, bidirectional=True, group="bidirectional"),
        replace(_CENTRE, packed=True, group="packed"),
    )
    shape, small = [(100, 16, 128, 128)], [(28, 64, 28, 128)]
    most = threads[-1:]
    others = [case for like in variants for case in _each(shape, _BOTH, most, like)]
    cold = [
        case
        for group in (EMPTY_CACHE, FILLED_CACHE)
        for case in _each(small, ("cold start",), most, replace(_CENTRE, group=group))
    ]
    frames = _each([(1, 1, 32, 64), (1, 1, 128, 256)], ("streaming",), most)
    return (*_each(GRID, _BOTH, threads), *others, *frames, *cold)


def _scaling(threads: Sequence[int]) -> tuple[Case, ...]:
    """One size is changed at a time, and last the number of threads."""
    sweeps: dict[str, Sequence[tuple[int, int, int, int]]] = {
        "T": [(T, 16, 128, 128) for T in (4, 16, 64, 256, 1024)],
        "B": [(100, B, 128, 128) for B in (1, 4, 16, 64, 256)],
        "H": [(100, 16, H, H) for H in (32, 64, 128, 256, 512)],
    }
    found: list[Case] = []
    for group, shapes in sweeps.items():
        found += _each(shapes, _BOTH, threads[-1:], replace(_CENTRE, group=group))
    centre = [(100, 64, 256, 256)]
    return (*found, *_each(centre, _BOTH, threads, replace(_CENTRE, group="threads")))


def _doubling(cpus: int) -> tuple[int, ...]:
    return (*(2**n for n in range(cpus.bit_length()) if 2**n < cpus), cpus)


PRESETS = {
    "quick": Preset(
        "a few shapes, in less than two minutes",
        _quick,
        Plan(rounds=5, sample=0.01, memory=False, patience=60, longest=12),
    ),
    "full": Preset(
        "the README's shapes on one and on all threads, and one of everything else",
        _full,
        threads=lambda cpus: tuple(sorted({1, cpus})),
    ),
    "streaming": Preset("frame by frame", _streaming),
    "training": Preset("forward and backward, on all threads", _training),
    "packed": Preset("sequences of unequal lengths", _packed),
    "scaling": Preset("how times grow with T, B, H and threads", _scaling, threads=_doubling),
}

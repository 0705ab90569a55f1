"""The presets of `rnnjit bench`: the cases that each measures, and how."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from msgspec import structs

from rnnjit.bench.cases import (
    BOTH,
    EMPTY_CACHE,
    FILLED_CACHE,
    GRID,
    LAST_STATE,
    STREAMING,
    each,
    of_cell,
)
from rnnjit.bench.plan import Plan
from rnnjit.bench.records import Case, CellName

_QUICK = (
    (5, 32, 10, 20),
    (28, 64, 28, 128),
    (100, 1, 64, 64),
    (100, 8, 128, 256),
    (100, 32, 128, 256),
)
#: Of a quick run: shapes of the grid, and the most steps of other cases.
_QUICK_GRID, _QUICK_STEPS = ((5, 32, 10, 20), (100, 1, 64, 64)), 5
_PACKED = ((50, 16, 32, 64), (100, 32, 64, 128), (200, 32, 128, 256), (1000, 16, 64, 128))


class Preset(NamedTuple):
    """A named set of cases.

    Attributes:
        about: what it measures, in a few words.
        build: a function from the numbers of threads, fewest first, to the cases, whatever their
            `cell`; cases that a kind of layer does not offer may be among them.
        plan: how it measures.
        threads: a function from the number of processors to the default numbers of threads.
        cells: the cells that it measures if none are named.
        contestants: names of the contestants if none are named; None for all.
    """

    about: str
    build: Callable[[Sequence[int]], tuple[Case, ...]]
    plan: Plan = Plan()
    threads: Callable[[int], tuple[int, ...]] = lambda cpus: (cpus,)
    cells: tuple[CellName, ...] = ("rnn",)
    contestants: tuple[str, ...] | None = None

    def cases(
        self, threads: Sequence[int], cells: Sequence[CellName] | None = None
    ) -> tuple[Case, ...]:
        """The cases.

        Args:
            threads: the numbers of threads, fewest first.
            cells: the cells of the layers; None for the preset's own.
        """
        built = self.build(threads)
        return tuple(case for cell in cells or self.cells for case in of_cell(built, cell))


#: How a quick run measures.
QUICK_PLAN = Plan(rounds=3, sample=2e-3, pause=0.01, memory=False, timeout=60, longest=12)


def shortened(cases: Iterable[Case]) -> tuple[Case, ...]:
    """Small shapes of the grid, and the last case of each other group, cut to a few steps.

    Cold starts are left out. These show in about a minute that everything runs, and are not to be
    compared with a whole run.
    """
    grid, others = [], {}
    for case in cases:
        if case.group != "grid" and not case.cold:
            short = structs.replace(case, T=min(case.T, _QUICK_STEPS))
            others[case.cell, case.group, case.threads] = short
        elif case.mode == "streaming" or (case.T, case.B, case.I, case.H) in _QUICK_GRID:
            grid.append(case)
    return (*grid, *others.values())


def _quick(threads: Sequence[int]) -> tuple[Case, ...]:
    return each(_QUICK, BOTH, threads) + each(STREAMING[:1], ("streaming",), threads)


def _streaming(threads: Sequence[int]) -> tuple[Case, ...]:
    deep = each([(1, 1, 128, 128)], ("streaming",), threads, layers=3, group="layers")
    return each(STREAMING, ("streaming",), threads) + deep


def _training(threads: Sequence[int]) -> tuple[Case, ...]:
    last = each(LAST_STATE, ("last state",), threads)
    return each(GRID, ("training",), threads) + last


def _grid(threads: Sequence[int]) -> tuple[Case, ...]:
    return each(GRID, BOTH, threads)


def _packed(threads: Sequence[int]) -> tuple[Case, ...]:
    two = {"bidirectional": True, "layers": 2, "group": "bidirectional"}
    shapes = each(_PACKED, BOTH, threads, packed=True)
    return shapes + each(_PACKED[1:2], BOTH, threads, packed=True, **two)


def _full(threads: Sequence[int]) -> tuple[Case, ...]:
    variants: tuple[dict[str, Any], ...] = (
        {"dtype": "float64", "group": "float64"},
        {"nonlinearity": "relu", "group": "relu"},
        {"layers": 3, "group": "layers"},
        {"bidirectional": True, "group": "bidirectional"},
        {"packed": True, "group": "packed"},
    )
    shape, small, most = [(100, 16, 128, 128)], [(28, 64, 28, 128)], threads[-1:]
    others = [case for variant in variants for case in each(shape, BOTH, most, **variant)]
    cold = [
        case
        for group in (EMPTY_CACHE, FILLED_CACHE)
        for case in each(small, ("cold start",), most, group=group)
    ]
    frames = each(STREAMING[:3:2], ("streaming",), most)
    return (*each(GRID, BOTH, threads), *others, *frames, *cold)


def _cells(threads: Sequence[int]) -> tuple[Case, ...]:
    """The grid, and one of everything else that torch's layers and cells offer."""
    variants: tuple[dict[str, Any], ...] = (
        {"bidirectional": True, "group": "bidirectional"},
        {"layers": 2, "group": "2 layers"},
        {"layers": 3, "group": "3 layers"},
        {"dtype": "float64", "group": "float64"},
        {"proj_size": 64, "group": "proj_size"},
    )
    shape = [(100, 32, 128, 256)]
    others = [case for variant in variants for case in each(shape, BOTH, threads, **variant)]
    packed = each(_PACKED[-1:], BOTH, threads, packed=True, group="packed")
    steps = [(1, 1, 128, 128), (1, 4096, 128, 128)]
    cells = each(steps, BOTH, threads, as_cell=True, group="cell")
    frames = each(steps, ("streaming",), threads, group="frame")
    return (*each(GRID, BOTH, threads), *packed, *others, *cells, *frames)


def _scaling(threads: Sequence[int]) -> tuple[Case, ...]:
    """Sweeps over T, B, H and the number of threads, one at a time."""
    sweeps: dict[str, Sequence[tuple[int, int, int, int]]] = {
        "T": [(T, 16, 128, 128) for T in (4, 16, 64, 256, 1024)],
        "B": [(100, B, 128, 128) for B in (1, 4, 16, 64, 256)],
        "H": [(100, 16, H, H) for H in (32, 64, 128, 256, 512)],
    }
    found: list[Case] = []
    for group, shapes in sweeps.items():
        found += each(shapes, BOTH, threads[-1:], group=group)
    return (*found, *each([(100, 64, 256, 256)], BOTH, threads, group="threads"))


def _quantized(threads: Sequence[int]) -> tuple[Case, ...]:
    """Single rows and small batches, which reading the matrices bounds most."""
    shapes = [(T, B, H, H) for H in (128, 256, 512, 1024) for B in (1, 16) for T in (1, 20)]
    return each(shapes, ("forward",), threads, dtype="int8", group="int8")


def _doubling(cpus: int) -> tuple[int, ...]:
    return (*(2**n for n in range(cpus.bit_length()) if 2**n < cpus), cpus)


PRESETS = {
    "quick": Preset(
        "a few shapes, in less than two minutes",
        _quick,
        Plan(rounds=5, sample=0.01, memory=False, timeout=60, longest=12),
    ),
    "full": Preset(
        "the shapes of docs/benchmarks.md on one and all threads, and one of everything else",
        _full,
        threads=lambda cpus: tuple(sorted({1, cpus})),
    ),
    "streaming": Preset("frame by frame", _streaming),
    "training": Preset("forward and backward, on all threads", _training),
    "grid": Preset(
        "the shapes of docs/benchmarks.md alone, forward and training, on all threads",
        _grid,
        Plan(rounds=9, most=2.0),
        contestants=("auto", "onnxruntime", "openvino"),
    ),
    "packed": Preset("sequences of unequal lengths", _packed),
    "cells": Preset(
        "nn.LSTM and nn.GRU over the shapes of docs/benchmarks.md, and one of everything else",
        _cells,
        Plan(rounds=9, most=3.0),
        cells=("lstm", "gru"),
        contestants=("auto", "onnxruntime", "openvino", "jax"),
    ),
    "quantized": Preset(
        "int8 matrices of nn.LSTM and nn.GRU, beside float32 and others' int8 layers",
        _quantized,
        Plan(rounds=9, most=2.0),
        cells=("lstm", "gru"),
    ),
    "scaling": Preset("how times grow with T, B, H and threads", _scaling, threads=_doubling),
}

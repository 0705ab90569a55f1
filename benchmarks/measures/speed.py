"""How many times faster than eager: the grid, the extremes in it, and the kinds of nn.RNN."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import geometric_mean

import torch

import rnnjit
from measures.pairs import BOTH, FORWARD, PASSES, PLAIN, Bench, Shape, Variant
from measures.report import Section

GRID = (
    Shape(1, 1, 32, 64),
    Shape(5, 32, 10, 20),
    Shape(100, 1, 64, 64),
    Shape(100, 1, 128, 256),
    Shape(100, 1, 512, 512),
    Shape(100, 8, 128, 256),
    Shape(100, 32, 128, 256),
    Shape(100, 64, 512, 512),
    Shape(20, 128, 1024, 1024),
    Shape(1000, 16, 64, 128),
    Shape(28, 64, 28, 128),
)
QUICK = (Shape(5, 32, 10, 20), Shape(100, 8, 128, 256))
COMPUTE_BOUND = (Shape(100, 64, 512, 512), Shape(20, 128, 1024, 1024))
SINGLE = {Shape(100, 1, 64, 64): 14.0, Shape(100, 1, 128, 256): 5.5, Shape(100, 1, 512, 512): 4.0}
STEP = Shape(1, 1, 32, 64)
VARIANTS = (
    Variant("bidirectional", (("bidirectional", True),)),
    Variant("2 layers", (("num_layers", 2),)),
    Variant("3 layers", (("num_layers", 3),)),
    Variant("relu", (("nonlinearity", "relu"),)),
    Variant("float64", dtype=torch.float64),
)
VARIANT_SHAPES = (
    Shape(100, 1, 128, 256),
    Shape(100, 8, 128, 256),
    Shape(100, 32, 128, 256),
    Shape(100, 64, 512, 512),
)
_SHAPE = "T, B, I, H"


def grid(bench: Bench, section: Section) -> None:
    """Every shape of the grid, and the geometric means."""
    shapes = QUICK if bench.quick else GRID
    _measure(bench, section, shapes, PASSES)
    for passes, bar in ((FORWARD, 6.0), (BOTH, 6.5)):
        mean = geometric_mean(bench.pair(shape, passes).ratio for shape in shapes)
        section.at_least(f"{passes}, geometric mean of the grid", mean, bar)


def compute(bench: Bench, section: Section) -> None:
    """The share of the machine's peak where that is what limits."""
    shapes = QUICK[1:] if bench.quick else COMPUTE_BOUND
    _measure(bench, section, shapes, PASSES)
    for passes, bar in ((FORWARD, 85.0), (BOTH, 75.0)):
        for shape in shapes:
            share = 100 * bench.pair(shape, passes).gflops / bench.peak()
            section.at_least(f"{passes} ({shape}), share of FMA peak", share, bar, "%")


def single(bench: Bench, section: Section) -> None:
    """One sequence at a time."""
    shapes = list(SINGLE)[:1] if bench.quick else SINGLE
    _measure(bench, section, shapes, (FORWARD,))
    for shape in shapes:
        ratio = bench.pair(shape, FORWARD).ratio
        section.at_least(f"forward ({shape})", ratio, SINGLE[shape])


def step(bench: Bench, section: Section) -> None:
    """A streaming step: every call takes the state that the one before gave."""
    rnn = PLAIN.module(STEP)
    call = PLAIN.call(rnn, STEP)
    modules = {"eager": rnn, "rnnjit": rnnjit.compile(rnn)}
    states = dict.fromkeys(modules, call.h0)

    def streaming(name: str) -> None:
        _, states[name] = modules[name](call.x, states[name])

    steps = {
        "eager": lambda: streaming("eager"),
        "rnnjit": lambda: streaming("rnnjit"),
    }
    times = bench.timed(steps, FORWARD)
    eager, compiled = (times[name].median * 1e6 for name in modules)
    section.record(**{_SHAPE: str(STEP)}, eager_us=eager, rnnjit_us=compiled)
    section.at_least(f"streaming step ({STEP})", eager / compiled, 4.0)
    section.note(f"streaming step ({STEP}), a call", compiled, "us")


def variants(bench: Bench, section: Section) -> None:
    """Other kinds of nn.RNN against the plain one at the same shape: at most 20% less gained.

    Half precision of vectors halves the operations: float64 is held against half of float32's.
    """
    shapes = QUICK[1:] if bench.quick else VARIANT_SHAPES
    for variant in VARIANTS:
        for passes in PASSES:
            worst: list[float] = []
            for shape in shapes:
                plain, pair = bench.measure_all(shape, (PLAIN, variant), passes)
                of_ratio = pair.ratio / plain.ratio
                of_speed = pair.gflops / plain.gflops * variant.bits / 32
                section.record(
                    **{"kind": variant.name, _SHAPE: str(shape), "pass": passes},
                    **pair.columns(),
                    of_plain=of_ratio,
                    **{"GFLOP/s": pair.gflops, "of_plain's": of_speed},
                    plain={"ratio": plain.ratio, "GFLOP/s": plain.gflops},
                )
                worst.append(of_speed if variant.bits == 64 else of_ratio)
            of = "half the GFLOP/s" if variant.bits == 64 else "the ratio"
            what = f"{variant.name}, {passes}: least share of {of} of float32 tanh, 1 layer"
            section.at_least(what, 100 * min(worst), 80.0, "%")


def _measure(
    bench: Bench, section: Section, shapes: Iterable[Shape], passes: Iterable[str]
) -> None:
    """A record for each pass over each shape."""
    for each in passes:
        for shape in shapes:
            pair = bench.pair(shape, each)
            section.record(
                **{"pass": each, _SHAPE: str(shape)},
                **pair.columns(),
                **{"GFLOP/s": pair.gflops, "% of peak": 100 * pair.gflops / bench.peak()},
            )

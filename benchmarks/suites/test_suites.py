"""pytest-benchmark suites: every mode of a call, on eager PyTorch and every backend.

    make bench

measures all of them. Without `--benchmark-enable` each mode runs once, on its first case, as a test
of the suites themselves. The correctness gate of `rnnjit bench` judges results before anything is
timed; times are never asserted.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch

from rnnjit.bench import arrays, roofline
from rnnjit.bench.cases import BOTH, GRID, STREAMING, each
from rnnjit.bench.contestants.base import Contestant
from rnnjit.bench.correctness_gate import CorrectnessGate
from rnnjit.bench.memory import growth
from rnnjit.bench.plan import Plan
from rnnjit.bench.records import Case, Machine
from rnnjit.bench.report.results import extras, layer_words
from rnnjit.bench.runner import start_once
from rnnjit.bench.trial import ARRAYS, Trial
from rnnjit.runtime.timing import calibrate

_THREADS = (torch.get_num_threads(),)
#: The first case of every suite: fast, since it is run as a test too.
_SMALL = (5, 32, 10, 20)
_SHAPES = (_SMALL, *(shape for shape in GRID if shape != _SMALL))
_FEW = (_SMALL, (100, 1, 128, 256), (100, 32, 128, 256), (100, 64, 512, 512), (1000, 16, 64, 128))
_PACKED = (_SMALL, (100, 8, 128, 256), (100, 32, 128, 256), (1000, 16, 64, 128))
_FLOAT64 = (_SMALL, (100, 32, 128, 256))
SUITES = (
    *(
        each(shapes, (mode,), _THREADS) + each(_FLOAT64, (mode,), _THREADS, dtype="float64")
        for mode, shapes in (("forward", _SHAPES), ("training", _SHAPES), ("backward", _FEW))
    ),
    *(each(_PACKED, (mode,), _THREADS, packed=True) for mode in BOTH),
    each(STREAMING, ("streaming",), _THREADS),
    *(
        suite
        for cell in ("lstm", "gru")
        for suite in (
            each(_FEW, ("forward",), _THREADS, cell=cell),
            each(_FEW, ("training",), _THREADS, cell=cell),
            each(STREAMING[1:3], ("streaming",), _THREADS, cell=cell),
            each([(1, 1, 128, 128), (1, 4096, 128, 128)], BOTH, _THREADS, cell=cell, as_cell=True),
        )
    ),
)
_PLAN = Plan(rounds=15, sample=0.005)
#: A process that takes at least these seconds is run only once.
_LONG = 15


def test_call(benchmark: Any, machine: Machine | None, case: Case, contestant: Contestant) -> None:
    """One call of a mode, see `rnnjit.bench.records.Mode`."""
    if why := contestant.declines(case):
        pytest.skip(f"{contestant.name} declines it: {why}")
    gate, drawn = _judged(case)
    ready = contestant.prepare(case, drawn)
    judgement = gate.judge(ready.results())
    assert not judgement.wrong, judgement.wrong
    kind = ", ".join([*layer_words(case.cell), case.dtype, *extras(case)])
    benchmark.group = f"{case.mode}, T={case.T} B={case.B} I={case.I} H={case.H}, {kind}"
    _describe(benchmark, case, contestant, peak_memory=growth(lambda: ready.run))
    calls = calibrate(ready.run, _PLAN.sample) if machine else 1
    benchmark.pedantic(ready.run, rounds=_PLAN.rounds, iterations=calls, warmup_rounds=1)
    if machine is not None:
        seconds = benchmark.stats.stats.median
        bound = roofline.bound(case, seconds, machine)
        benchmark.extra_info.update(
            flops=roofline.work(case).flops,
            share_of_peak=roofline.share_of_peak(case, seconds, machine),
            bound=bound and bound.name,
            share_of_bound=bound and bound.share,
        )


def test_cold_start(
    benchmark: Any,
    contestant: Contestant,
    cache: str,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """A process from its start to its first gradients, Python and `import torch` included."""
    (case,) = each([(20, 8, 64, 128)], ("cold training",), _THREADS)
    gate, drawn = _judged(case)
    arrays.save(tmp_path / ARRAYS, drawn)
    # One cache for each contestant and session: once filled, it stays so.
    filled = tmp_path_factory.getbasetemp() / f"cache-of-{contestant.name}"
    new = (tmp_path / f"cache-{number}" for number in count())

    def start() -> float:
        place = next(new) if cache == "empty" else filled
        trial = Trial(contestant, case, _PLAN.timeout)
        seconds = start_once(trial, tmp_path, gate, place)
        assert trial.right, trial.result.reason
        return seconds

    # The first start fills the cache, and reads every file into memory.
    rounds = _PLAN.starts if start() < _LONG else 1
    benchmark.group = f"{case.mode}, {cache} cache"
    _describe(benchmark, case, contestant, cache=cache)
    benchmark.pedantic(start, rounds=rounds)


@lru_cache(maxsize=1)  # contestants follow one another
def _judged(case: Case) -> tuple[CorrectnessGate, arrays.Arrays]:
    drawn = arrays.draw(case)
    return CorrectnessGate(case, drawn), drawn


def _describe(benchmark: Any, case: Case, contestant: Contestant, **more: Any) -> None:
    """Record the case, before the benchmark runs."""
    fields = ("mode", "T", "B", "I", "H", "cell", "as_cell", "dtype", "packed", "threads")
    benchmark.extra_info.update(
        backend=contestant.name, **{name: getattr(case, name) for name in fields}, **more
    )

"""A process from its start to the end of its first forward and backward pass."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from itertools import count, product
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import pytest
import torch
from measures.pairs import Shape

from rnnjit.bench.records import Case
from rnnjit.codecache import DIRECTORY_VARIABLE
from rnnjit.testing.calls import Call, build
from rnnjit.testing.compare import Standard, compare
from rnnjit.testing.procedures import with_gradients
from suites.cases import cases, for_kit
from suites.contestants import EAGER, contestants
from suites.timed import Timed

CASES = cases("cold start", (Shape(20, 8, 64, 128),))
_ROUNDS = 3
#: Seconds of a process from which on it is run once only.
_LONG = 15
_SECONDS = 300
_HERE = Path(__file__).parents[1]
#: Where kernels are kept: rnnjit's own, and those of torch.compile's compiler.
_CACHES = (DIRECTORY_VARIABLE, "TORCHINDUCTOR_CACHE_DIR")


def pairs(*, timing: bool) -> list[tuple[str, str]]:
    """Contestants and how they find their caches; two, if nothing is timed: others take long."""
    if not timing:
        return [(name, "filled") for name in contestants() if name in (EAGER, "numba")]
    compiling = [name for name in contestants() if name != EAGER]
    return [(EAGER, "unused"), *product(compiling, ("empty", "filled"))]


def test_cold_start(
    benchmark: Any,
    timed: Timed,
    case: Case,
    contestant: str,
    cache: str,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Python's own start and `import torch` are in it; `extra_info` has the parts."""
    call, runs = build(for_kit(case)), []
    new = (tmp_path / f"cache-{number}" for number in count(1))
    process = _process(case, contestant, call, tmp_path)
    # Judged first, as everywhere; it also brings every file into memory.
    # The cache is the contestant's for the session: once filled, it stays so.
    filled = tmp_path_factory.getbasetemp() / f"cache-of-{contestant}"
    begin = perf_counter()
    process(filled)
    rounds = _ROUNDS if perf_counter() - begin < _LONG else 1
    compare(torch.load(tmp_path / "found.pt"), Standard(with_gradients, call))

    def place() -> tuple[tuple[Path], dict[str, Any]]:
        return (next(new) if cache == "empty" else filled,), {}

    timed.describe(f"cold start, {cache} cache", case, contestant)
    benchmark.pedantic(lambda at: runs.append(process(at)), setup=place, rounds=rounds)
    memory = max((run.pop("peak_memory") for run in runs), key=lambda most: most or 0)
    parts = {name: median(run[name] for run in runs) for name in runs[0]}
    benchmark.extra_info.update(cache=cache, peak_memory=memory, **parts)


def _process(
    case: Case, contestant: str, call: Call, folder: Path
) -> Callable[[Path], dict[str, Any]]:
    """What runs `first_call` with a cache at the place it is given, and returns what it printed."""
    given, found = folder / "given.pt", folder / "found.pt"
    leaves = {name: tensor.detach() for name, tensor in call.leaves().items()}
    torch.save({"leaves": leaves, "grad_y": call.grad_y, "grad_h_n": call.grad_h_n}, given)
    path = os.pathsep.join([str(_HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
    program = [sys.executable, "-m", "suites.first_call", contestant, str(case.threads)]

    def run(cache: Path) -> dict[str, Any]:
        cache.mkdir(mode=0o700, exist_ok=True)
        done = subprocess.run(
            [*program, given, found],
            env={**os.environ, "PYTHONPATH": path, **dict.fromkeys(_CACHES, str(cache))},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            timeout=_SECONDS,
        )
        result: dict[str, Any] = json.loads(done.stdout)
        return result

    return run

"""An older wheel of this project against the working tree, timed in turns in one process.

    python benchmarks/against_wheel.py WHEEL [--new WHEEL] [--backend NAME] [--rounds N]

Times from two processes cannot be compared to within a few percent: their memory is placed
differently, and the load of the machine changes. Here both packages are in one process, and their
compiled modules share the tensors. The modules `rnnjit` and `rnnjit_*` of each side are kept, and
put back into `sys.modules` when it is its turn. Forward is in evaluation mode without gradients;
forward+backward computes the gradients of x, h0 and every weight. float32, tanh, one layer, torch's
own thread count. Run it alone on the machine.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import geometric_mean, median
from tempfile import TemporaryDirectory
from time import perf_counter
from types import ModuleType
from typing import Any
from zipfile import ZipFile

import torch
from torch import Tensor, nn

#: T, B, I, H of a call: those of the table in docs/benchmarks.md.
SHAPES = (
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
PASSES = ("forward", "forward+backward")
#: The least seconds that a sample takes.
_SAMPLE = 2e-3
_ROOT = Path(__file__).resolve().parents[1]

Pass = Callable[[], Sequence[Tensor]]


class Side:
    """One of the two packages, which can be imported only during its turn.

    Args:
        name: for the table.
        places: folders to import it from.

    Attributes:
        rnnjit: its package.

    Raises:
        ImportError: it cannot be imported from there.
    """

    def __init__(self, name: str, places: Sequence[Path]) -> None:
        self.name, self._places = name, [str(place) for place in places]
        self._modules: dict[str, ModuleType] = {}
        importlib.invalidate_caches()  # of entry points, too
        with self.turn():
            self.rnnjit: Any = importlib.import_module("rnnjit")
            self.rnnjit.backends()

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Imports, also those in functions, find this side's modules."""
        others, path = _taken_out(), sys.path[:]
        sys.modules.update(self._modules)
        sys.path[:0] = self._places
        try:
            yield
        finally:
            sys.path[:] = path
            self._modules = _taken_out()
            sys.modules.update(others)
        self._check()

    def pass_of(self, kind: str, rnn: nn.RNN, tensors: Sequence[Tensor], backend: str) -> Pass:
        """A function without arguments that returns the results; built in this side's turn."""
        x, h0, grad_y = tensors
        fast = self.rnnjit.compile(rnn, backend=backend)
        if kind == "forward":
            fast.eval()

            def forward() -> Sequence[Tensor]:
                with torch.no_grad():
                    found: Sequence[Tensor] = fast(x, h0)
                return found

            return forward
        fast.train()
        leaves = [x.detach().requires_grad_(), h0.detach().requires_grad_(), *rnn.parameters()]

        def both() -> Sequence[Tensor]:
            y, h_n = fast(leaves[0], leaves[1])
            return y, h_n, *torch.autograd.grad(y, leaves, grad_y)

        return both

    def _check(self) -> None:
        """Check where modules come from: otherwise a package could be timed against itself."""
        for name, module in self._modules.items():
            file = Path(module.__file__ or "").resolve()
            if not any(file.is_relative_to(Path(place).resolve()) for place in self._places):
                raise ImportError(f"{self.name}: {name} was imported from {file}")


def fill_cache(places: Sequence[Path], backend: str, folder: str) -> None:
    """Compile the kernels in a separate process: numba cannot compile for both sides in one.

    Raises:
        CalledProcessError: it failed; its error is on stderr.
    """
    code = (
        "import torch, rnnjit\n"
        f"fast = rnnjit.compile(torch.nn.RNN(8, 8), backend={backend!r})\n"
        "fast(torch.zeros(2, 2, 8))[0].sum().backward()"
    )
    path = os.pathsep.join(map(str, places))
    subprocess.run(
        [sys.executable, "-c", code], check=True, cwd=folder, env={**os.environ, "PYTHONPATH": path}
    )


def _taken_out() -> dict[str, ModuleType]:
    """Take the modules of a side out of `sys.modules`."""
    names = [name for name in sys.modules if name.split(".")[0].split("_")[0] == "rnnjit"]
    return {name: sys.modules.pop(name) for name in names}


@dataclass(frozen=True)
class Compared:
    """Times of one pass over one shape.

    Attributes:
        shape: T, B, I, H.
        kind: which pass.
        same: whether both sides' results were the same bits.
        old, new: seconds that a call took, of each sample.
    """

    shape: tuple[int, int, int, int]
    kind: str
    same: bool
    old: list[float]
    new: list[float]

    @property
    def ratio(self) -> float:
        """The new median over the old one."""
        return median(self.new) / median(self.old)


def compare(
    sides: tuple[Side, Side], passes: dict[Side, Pass], rounds: int
) -> tuple[bool, dict[Side, list[float]]]:
    """Whether both sides' results are the same bits, and how long a call of each takes."""
    results, seconds = [], 0.0
    for side in sides:
        with side.turn():
            for _ in range(3):  # the first ones also fill caches
                start = perf_counter()
                found = passes[side]()
                seconds = perf_counter() - start
        results.append(found)
    same = all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    calls = max(1, math.ceil(_SAMPLE / seconds))
    with sides[1].turn():  # a single call may be too short to time
        calls = max(1, math.ceil(_SAMPLE / _sample(passes[sides[1]], calls)))
    times: dict[Side, list[float]] = {side: [] for side in sides}
    for index in range(rounds):
        for side in sides if index % 2 == 0 else reversed(sides):
            with side.turn():
                passes[side]()
                times[side].append(_sample(passes[side], calls))
    return same, times


def _sample(run: Pass, calls: int) -> float:
    """Seconds that a call takes, as a mean."""
    start = perf_counter()
    for _ in range(calls):
        run()
    return (perf_counter() - start) / calls


def measure(sides: tuple[Side, Side], backend: str, rounds: int) -> list[Compared]:
    """Every shape and pass; a line is printed for each."""
    made: list[tuple[tuple[int, int, int, int], str, dict[Side, Pass]]] = []
    for shape in SHAPES:
        T, B, I, H = shape
        torch.manual_seed(0)
        rnn = nn.RNN(I, H)
        tensors = torch.randn(T, B, I), torch.randn(1, B, H), torch.randn(T, B, H)
        for kind in PASSES:
            passes = {}
            for side in sides:
                with side.turn():
                    passes[side] = side.pass_of(kind, rnn, tensors, backend)
                    passes[side]()
            made.append((shape, kind, passes))
    print(f"{'T, B, I, H':<22}{'pass':<18}{'old us':>11}{'new us':>11}{'new/old':>9}  bits")
    found = []
    for shape, kind, passes in made:
        gc.collect()
        gc.disable()
        try:
            same, times = compare(sides, passes, rounds)
        finally:
            gc.enable()
        one = Compared(shape, kind, same, times[sides[0]], times[sides[1]])
        found.append(one)
        print(
            f"{', '.join(map(str, shape)):<22}{kind:<18}{median(one.old) * 1e6:>11.1f}"
            f"{median(one.new) * 1e6:>11.1f}{one.ratio:>9.3f}  {'same' if same else 'differ'}",
            flush=True,
        )
    return found


def main() -> None:
    """Load both, measure, print the table, write the JSON file."""
    parser = argparse.ArgumentParser(description="An older wheel against the working tree.")
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--backend", default="numba")
    parser.add_argument("--rounds", type=int, default=15, help="samples of each time")
    parser.add_argument("--new", type=Path, metavar="WHEEL", help="instead of the working tree")
    parser.add_argument("--json", type=Path, metavar="FILE")
    wanted = parser.parse_args()
    if wanted.rounds < 1:
        parser.error("--rounds must be at least 1")
    # The files must exist for as long as something may be imported.
    with TemporaryDirectory() as folder:
        places: dict[str, list[Path]] = {"old": [], "new": [_ROOT, _ROOT / "backends"]}
        for name, wheel in (("old", wanted.wheel), ("new", wanted.new)):
            if wheel is not None:
                places[name] = [Path(folder) / name]
                with ZipFile(wheel) as archive:
                    archive.extractall(places[name][0])
        for each in places.values():
            fill_cache(each, wanted.backend, folder)
        sides = Side("old", places["old"]), Side("new", places["new"])
        print(f"old: {wanted.wheel}; new: {wanted.new or _ROOT}")
        print(f"backend {wanted.backend}, {torch.get_num_threads()} threads")
        found = measure(sides, wanted.backend, wanted.rounds)
    means = {
        kind: geometric_mean([one.ratio for one in found if one.kind == kind]) for kind in PASSES
    }
    means["all"] = geometric_mean([one.ratio for one in found])
    for kind, mean in means.items():
        print(f"{'geometric mean':<22}{kind:<18}{'':>22}{mean:>9.3f}")
    if wanted.json is not None:
        data = {
            "backend": wanted.backend,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "rounds": wanted.rounds,
            "geometric_means": means,
            "rows": [{**asdict(one), "ratio": one.ratio} for one in found],
        }
        wanted.json.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

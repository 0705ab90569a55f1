"""What takes a process of its own: start-up times and peak memory.

This file is also that process: it is run as `fresh.py start|memory eager|rnnjit THREADS [T B I H]`
and prints JSON. So it imports nothing that takes long before it is needed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from measures.pairs import Bench
    from measures.report import Section

_CACHE = "RNNJIT_CACHE_DIR"
_START_BARS = {"empty cache": 3.0, "filled cache": 0.5}
_STEPS = 3
_SHAPES = ((100, 64, 512, 512), (1000, 16, 64, 128), (1000, 64, 256, 256))


def start(bench: Bench, section: Section) -> None:
    """The first forward and backward pass of a process, with nothing compiled and with all."""
    runs: dict[str, list[dict[str, float]]] = {"empty cache": [], "filled cache": [], "eager": []}
    section.data["runs"] = runs
    try:
        _start_all(bench, section, runs)
    finally:
        for kind, found in runs.items():
            if found:
                _report_start(section, kind, found)
        imports = [run["import rnnjit"] for run in (*runs["empty cache"], *runs["filled cache"])]
        if imports:
            section.at_most("what import rnnjit adds to import torch", median(imports), 0.2, "s")


def _start_all(bench: Bench, section: Section, runs: dict[str, list[dict[str, float]]]) -> None:
    """Fill `runs`, all kinds in turns; every empty cache is a new one."""
    # Untimed, to bring every file into memory.
    _process("start", "rnnjit", bench.threads)
    for _ in range(1 if bench.quick else 5):
        with tempfile.TemporaryDirectory() as place:
            for kind in runs:
                module = "eager" if kind == "eager" else "rnnjit"
                run = _process("start", module, bench.threads, place=place)
                runs[kind].append(run)
                section.progress(kind, run["first pass"])


def _report_start(section: Section, kind: str, found: list[dict[str, float]]) -> None:
    middle = {name: median(run[name] for run in found) for name in found[0]}
    section.record(process=kind, **{f"{name}_s": value for name, value in middle.items()})
    both = median(run["import rnnjit"] + run["first pass"] for run in found)
    what = f"first forward+backward beyond import torch, {kind}"
    if kind in _START_BARS:
        section.at_most(what, both, _START_BARS[kind], "s")
    else:
        section.note(what, both, "s")


def memory(bench: Bench, section: Section) -> None:
    """What is kept for the backward pass, and the peak of training steps."""
    shapes = _SHAPES[1:2] if bench.quick else _SHAPES
    kept, peaks = [], []
    for shape in shapes:
        found = {
            kind: _process("memory", kind, bench.threads, *shape) for kind in ("eager", "rnnjit")
        }
        eager, compiled = found["eager"], found["rnnjit"]
        ratio = compiled["peak"] / eager["peak"]
        section.record(
            **{"T, B, I, H": ", ".join(map(str, shape)), "y_MiB": compiled["y"] / 2**20},
            **{f"kept_{kind}_y": each["kept"] / each["y"] for kind, each in found.items()},
            alive_rnnjit_y=compiled["alive"] / compiled["y"],
            **{f"peak_{kind}_MiB": each["peak"] / 2**20 for kind, each in found.items()},
            peak_ratio=ratio,
        )
        kept.append(compiled["kept"] / compiled["y"])
        peaks.append(ratio)
    section.at_most("kept for the backward pass of one layer, most", max(kept), 1.1, "y")
    alive = max(float(r["alive_rnnjit_y"]) for r in section.records)
    section.note("the same and the y that the caller has, most", alive, "y")
    section.at_most("peak training memory over eager's, most", max(peaks), 0.6)


def _process(
    task: str, kind: str, threads: int, *shape: int, place: str | None = None
) -> dict[str, float]:
    """What this file prints as a process of its own; `place` is its cache of compiled kernels."""
    environment = {**os.environ, **({_CACHE: place} if place else {})}
    command = [sys.executable, __file__, task, kind, str(threads), *map(str, shape)]
    done = subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, text=True, check=True, timeout=300
    )
    result: dict[str, float] = json.loads(done.stdout)
    return result


def _start(kind: str, threads: int) -> dict[str, float]:
    begin = perf_counter()
    import torch

    torch.set_num_threads(threads)
    with_torch = perf_counter()
    if kind == "rnnjit":
        import rnnjit
    imported = perf_counter()
    module: torch.nn.Module = torch.nn.RNN(64, 128)
    if kind == "rnnjit":
        module = rnnjit.compile(module)
    y, _ = module(torch.ones(20, 8, 64, requires_grad=True))
    y.backward(torch.ones_like(y))
    end = perf_counter()
    return {
        "import torch": with_torch - begin,
        "import rnnjit": imported - with_torch,
        "first pass": end - imported,
    }


def _memory(kind: str, threads: int, *shape: int) -> dict[str, float]:
    import torch

    import rnnjit

    def made(T: int, B: int, I: int, H: int) -> tuple[Any, Any, Any]:
        rnn = torch.nn.RNN(I, H)
        module = rnnjit.compile(rnn) if kind == "rnnjit" else rnn
        return module, torch.randn(T, B, I, requires_grad=True), torch.randn(T, B, H)

    def step(module: Any, x: Any, grad_y: Any) -> None:
        module.zero_grad(set_to_none=True)
        x.grad = None
        y, _ = module(x)
        y.backward(grad_y)

    torch.set_num_threads(threads)
    # A small step first, for what is loaded and not allocated.
    step(*made(2, 2, 8, 8))
    module, x, grad_y = made(*shape)
    before, peak = watch()
    for _ in range(_STEPS):
        step(module, x, grad_y)
    return {"peak": peak() - before, **_kept(module, x)}


def _kept(module: Any, x: Any) -> dict[str, float]:
    """Bytes saved for the backward pass, without those of x and the weights; bytes of y."""
    from torch.autograd.graph import saved_tensors_hooks

    saved: dict[int, int] = {}

    def note(tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    h0 = x.new_zeros(1, x.shape[1], module.hidden_size)
    with saved_tensors_hooks(note, lambda tensor: tensor):
        y, _ = module(x, h0)
    for given in (x, h0, *module.parameters()):
        saved.pop(given.untyped_storage().data_ptr(), None)
    of_y = y.untyped_storage()
    alive = {**saved, of_y.data_ptr(): of_y.nbytes()}
    return {"kept": sum(saved.values()), "alive": sum(alive.values()), "y": of_y.nbytes()}


def watch() -> tuple[int, Callable[[], int]]:
    """Bytes in memory now, and what gives the most from now on."""
    import resource

    forget = Path("/proc/self/clear_refs")
    if forget.exists():
        forget.write_text("5")
        return status("VmRSS"), lambda: status("VmHWM")
    # Kilobytes, but bytes on macOS; and the most since the process began.
    unit = 1 if sys.platform == "darwin" else 1024

    def most() -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit

    return most(), most


def status(name: str) -> int:
    """Bytes that Linux gives by this name for the process, such as "VmHWM"; 0 if it gives none."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) << 10
    return 0


if __name__ == "__main__":
    task, kind, *numbers = sys.argv[1:]
    print(json.dumps({"start": _start, "memory": _memory}[task](kind, *map(int, numbers))))

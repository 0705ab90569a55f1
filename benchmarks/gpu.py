"""A backend on a GPU, in one call: the conformance kit, a step's time, and times against eager.

    python benchmarks/gpu.py [--json FILE] [--quick]

Eager nn.RNN is cuDNN there; it is timed with TF32 off and on. All run the same call in one process
and take their samples in turns, each a stretch of device time between two events; figures are
medians. Where values differ from eager's by more than sums in another order can, the row says so
and gives no times. `--device cpu --backend numba` tries the script out where there is no GPU.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from statistics import geometric_mean, median
from time import perf_counter
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import rnnjit
from rnnjit import testing
from rnnjit.info import environment

if TYPE_CHECKING:
    from collections.abc import Iterator

STEPS, BATCHES, HIDDEN = (100, 1000), (1, 8, 32, 128), (64, 256, 512, 1024, 2048)
QUICK = ((100,), (1, 32), (64, 512))
PASSES = ("forward", "forward_backward")
#: How far results may be apart: both round sums in their own order over many steps.
CLOSE = {"float32": 1e-3, "float64": 1e-10, "bfloat16": 5e-2}
#: Seconds that a sample lasts at least.
_SAMPLE = 2e-3


class Call:
    """One input on a device, and the passes that are timed over it.

    Args:
        T, B, H: steps, batch, and hidden and input features.
        dtype: name of torch's.
        packed: whether the input is packed, with lengths from T / 4 to T.
        device: where.
    """

    def __init__(self, T: int, B: int, H: int, dtype: str, packed: bool, device: str) -> None:
        torch.manual_seed(0)
        options: Any = {"dtype": getattr(torch, dtype), "device": device}
        self.rnn = nn.RNN(H, H, **options)
        x = torch.randn(T, B, H, **options)
        self.leaf = x.requires_grad_()
        self.x: Tensor | PackedSequence = self.leaf
        if packed:
            lengths = torch.linspace(T, max(T // 4, 1), B).long()
            rows = pack_padded_sequence(x.detach(), lengths)
            self.leaf = rows.data.requires_grad_()
            self.x = PackedSequence(self.leaf, rows.batch_sizes)
        self.grad = torch.randn(*self.leaf.shape[:-1], H, **options)

    def forward(self, module: nn.Module) -> Tensor:
        """y, or its data."""
        y, _ = module(self.x)
        return y.data if isinstance(y, PackedSequence) else y

    def run(self, module: nn.Module, passes: str) -> Callable[[], None]:
        """What is timed."""

        def forward() -> None:
            with torch.no_grad():
                self.forward(module)

        def both() -> None:
            inputs = (self.leaf, *module.parameters())
            torch.autograd.grad(self.forward(module), inputs, self.grad)

        return forward if passes == "forward" else both


def seconds(call: Callable[[], None], calls: int, device: str) -> float:
    """Device time of one of `calls` calls; wall time where the device is the CPU."""
    if device == "cpu":
        start = perf_counter()
        for _ in range(calls):
            call()
        return (perf_counter() - start) / calls
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(calls):
        call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) * 1e-3 / calls


def medians(
    candidates: dict[str, Callable[[], None]], rounds: int, device: str
) -> dict[str, float]:
    """The median time of each, taken in turns."""
    counts = {}
    for name, call in candidates.items():
        seconds(call, 2, device)
        counts[name] = max(1, round(_SAMPLE / max(seconds(call, 1, device), 1e-7)))
    samples: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, call in candidates.items():
            samples[name].append(seconds(call, counts[name], device))
    return {name: median(taken) for name, taken in samples.items()}


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Whether torch's products and cuDNN may round float32 to TF32."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def measure(
    shape: tuple[int, int, int], dtype: str, packed: bool, options: argparse.Namespace
) -> dict[str, Any]:
    """Times and ratios of one shape."""
    call = Call(*shape, dtype, packed, options.device)
    ours = rnnjit.compile(call.rnn, backend=options.backend)
    found: dict[str, Any] = {"shape": shape, "dtype": dtype, "packed": packed}
    with torch.no_grad(), tf32(False):
        try:
            found["difference"] = float((call.forward(call.rnn) - call.forward(ours)).abs().max())
        except rnnjit.UnsupportedError as error:
            return found | {"difference": float("nan"), "declined": str(error)}
    if not found["difference"] <= CLOSE[dtype]:
        return found
    for passes in PASSES:
        eager, compiled = (call.run(module, passes) for module in (call.rnn, ours))

        def loose(eager: Callable[[], None] = eager) -> None:
            with tf32(True):
                eager()

        def strict(eager: Callable[[], None] = eager) -> None:
            with tf32(False):
                eager()

        candidates = {"eager": strict, "compiled": compiled}
        if dtype == "float32":
            candidates["eager_tf32"] = loose
        times = medians(candidates, options.rounds, options.device)
        found[passes] = times | {"ratio": times["eager"] / times["compiled"]}
    return found


def step_times(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Seconds that one more time step of a single sequence takes."""
    found = []
    for H in options.hidden:
        row: dict[str, Any] = {"H": H}
        for passes in PASSES:
            times = []
            for T in (100, 1100):
                call = Call(T, 1, H, "float32", False, options.device)
                module = rnnjit.compile(call.rnn, backend=options.backend)
                run = {"one": call.run(module, passes)}
                times.append(medians(run, options.rounds, options.device)["one"])
            row[passes] = (times[1] - times[0]) / 1000
        found.append(row)
    return found


def show(results: list[dict[str, Any]], title: str) -> None:
    """Print one row for each shape, and the geometric means."""
    table = Table(title=title, title_justify="left")
    for heading in ("T, B, H", "forward ms", "of eager", "of TF32"):
        table.add_column(heading, justify="right", no_wrap=True)
    for heading in ("fwd+bwd ms", "of eager", "of TF32"):
        table.add_column(heading, justify="right", no_wrap=True)
    ratios: dict[str, list[float]] = {passes: [] for passes in PASSES}
    for result in results:
        cells = [", ".join(map(str, result["shape"]))]
        for passes in PASSES:
            if passes not in result:
                why = "declined" if "declined" in result else "wrong"
                cells += [why, f"{result['difference']:.1e}", ""]
                continue
            times = result[passes]
            ratios[passes].append(times["ratio"])
            loose = times.get("eager_tf32")
            cells += [f"{times['compiled'] * 1e3:.3g}", f"{times['ratio']:.2f}x"]
            cells.append(f"{loose / times['compiled']:.2f}x" if loose else "")
        table.add_row(*cells)
    table.add_section()
    means = [f"{geometric_mean(ratios[p]):.2f}x" if ratios[p] else "" for p in PASSES]
    table.add_row("geometric mean", "", means[0], "", "", means[1], "")
    Console().print(table)


def main() -> None:
    """Check, time and print everything; write the JSON file."""
    parser = argparse.ArgumentParser(description="A backend on a GPU: right, and how fast.")
    parser.add_argument("--backend", choices=rnnjit.backends(), default="cuda")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--quick", action="store_true", help="a few shapes, the quick cases")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    steps, batches, options.hidden = QUICK if options.quick else (STEPS, BATCHES, HIDDEN)
    report = testing.run(options.backend, quick=options.quick)
    print(f"kit: {report.passed} passed, {report.failed} failed, {report.declined} declined")
    for failure in report.failures:
        print(f"FAILED {failure.id}: {failure.message}")
    step = step_times(options)
    for row in step:
        times = ", ".join(f"{passes} {row[passes] * 1e6:.2f} us" for passes in PASSES)
        print(f"one more step, B=1, H={row['H']}: {times}")
    results = []
    for dtype, packed in itertools.product(CLOSE, (False, True)):
        shapes = list(itertools.product(steps, batches, options.hidden))
        shown = track(shapes, console=Console(stderr=True), transient=True)
        some = [measure(shape, dtype, packed, options) for shape in shown]
        show(some, f"{options.backend} against eager, {dtype}, {'packed' if packed else 'dense'}")
        results += some
    if options.json is not None:
        device = "cpu" if options.device == "cpu" else torch.cuda.get_device_name()
        kit = {"passed": report.passed, "failed": [f.id for f in report.failures]}
        data = {"environment": environment().as_dict(), "device": device, "kit": kit}
        data |= {"seconds_per_step": step, "results": results}
        options.json.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

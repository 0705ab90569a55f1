"""How many times faster than eager nn.RNN (on CUDA: cuDNN) a backend is on a device.

    python benchmarks/cuda_layers.py [--dtype float32] [--tf32] [--packed] [--json FILE]

Each call is waited for, so that its launches and the host's work count. Both run the same call in
one process and take their samples in turns; each figure is the ratio of the medians. Values are
compared first: where they differ by more than the kit allows the row says so and gives no times.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from statistics import geometric_mean
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import rnnjit
from rnnjit.bench.timing import interleave
from rnnjit.info import environment

STEPS, BATCHES, HIDDEN = (100, 1000), (1, 8, 32, 128), (64, 256, 512, 1024, 2048)
#: How far results may be apart: both round sums in their own order over many steps.
_CLOSE = {"float32": 1e-3, "float64": 1e-10, "bfloat16": 5e-2, "float16": 1e-2}


class Call:
    """One input on a device, and the passes that are timed over it.

    Args:
        T, B, H: steps, batch, and hidden and input features.
        arguments: the command line's dtype, device and packed.
    """

    def __init__(self, T: int, B: int, H: int, arguments: argparse.Namespace) -> None:
        self.device, dtype = arguments.device, getattr(torch, arguments.dtype)
        torch.manual_seed(0)
        self.rnn = nn.RNN(H, H, dtype=dtype, device=self.device)
        x = torch.randn(T, B, H, dtype=dtype, device=self.device)
        self.leaf = x.requires_grad_()
        self.x: Tensor | PackedSequence = self.leaf
        if arguments.packed:
            lengths = torch.linspace(T, max(T // 4, 1), B).long()
            packed = pack_padded_sequence(x.detach(), lengths)
            self.leaf = packed.data.requires_grad_()
            self.x = PackedSequence(self.leaf, packed.batch_sizes)
        self.grad = torch.randn(*self.leaf.shape[:-1], H, dtype=dtype, device=self.device)

    def forward(self, module: nn.Module) -> Tensor:
        """y, or its data."""
        y, _ = module(self.x)
        return y.data if isinstance(y, PackedSequence) else y

    def passes(self, module: nn.Module) -> dict[str, Callable[[], None]]:
        """What is timed."""

        def forward() -> None:
            with torch.no_grad():
                self.forward(module)
            self.wait()

        def both() -> None:
            inputs = (self.leaf, *module.parameters())
            torch.autograd.grad(self.forward(module), inputs, self.grad)
            self.wait()

        return {"forward": forward, "forward_backward": both}

    def wait(self) -> None:
        """Until the device is done."""
        if self.device == "cuda":
            torch.cuda.synchronize()


def measure(T: int, B: int, H: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Times and ratios of one shape."""
    call = Call(T, B, H, arguments)
    modules = {"eager": call.rnn, "compiled": rnnjit.compile(call.rnn, backend=arguments.backend)}
    found: dict[str, Any] = {"shape": {"T": T, "B": B, "H": H}}
    with torch.no_grad():
        eager, ours = (call.forward(module) for module in modules.values())
    found["difference"] = float((eager - ours).abs().max())
    if not found["difference"] <= _CLOSE[arguments.dtype]:
        return found
    for name in ("forward", "forward_backward"):
        candidates = {kind: call.passes(module)[name] for kind, module in modules.items()}
        times = interleave(candidates, rounds=arguments.rounds)
        found[name] = {kind: asdict(timing) for kind, timing in times.items()}
        found[f"{name}_ratio"] = times["eager"].median / times["compiled"].median
    return found


def show(results: list[dict[str, Any]], title: str) -> None:
    """Print one row for each shape, and the geometric means."""
    table = Table(title=title, title_justify="left")
    for heading in ("T, B, H", "forward ms", "ratio", "fwd+bwd ms", "ratio"):
        table.add_column(heading, justify="right", no_wrap=True)
    passes = ("forward", "forward_backward")
    for result in results:
        cells = [", ".join(str(size) for size in result["shape"].values())]
        for name in passes:
            if name not in result:
                cells += ["wrong", f"{result['difference']:.1e}"]
                continue
            cells.append(f"{result[name]['compiled']['median'] * 1e3:.3g}")
            cells.append(f"{result[f'{name}_ratio']:.2f}")
        table.add_row(*cells)
    means = [
        geometric_mean([r[f"{name}_ratio"] for r in results if name in r] or [float("nan")])
        for name in passes
    ]
    table.add_section()
    table.add_row("geometric mean", "", f"{means[0]:.2f}", "", f"{means[1]:.2f}")
    Console().print(table)


def main() -> None:
    """Measure every shape, print the table, write the JSON file."""
    parser = argparse.ArgumentParser(description="Times faster than eager, on a device.")
    parser.add_argument("--backend", choices=("auto", *rnnjit.backends()), default="auto")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", choices=_CLOSE, default="float32")
    parser.add_argument("--tf32", action="store_true", help="let matmul and cuDNN use TF32")
    parser.add_argument("--packed", action="store_true")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, nargs="+", default=STEPS)
    parser.add_argument("--batches", type=int, nargs="+", default=BATCHES)
    parser.add_argument("--hidden", type=int, nargs="+", default=HIDDEN)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = arguments.tf32
    torch.backends.cudnn.allow_tf32 = arguments.tf32
    shapes = list(itertools.product(arguments.steps, arguments.batches, arguments.hidden))
    progress = track(shapes, console=Console(stderr=True), transient=True)
    results = [measure(*shape, arguments) for shape in progress]
    form = "packed" if arguments.packed else "dense"
    show(results, f"{arguments.backend} against eager, {arguments.dtype}, {form}")
    if arguments.json is not None:
        options = {name: str(value) for name, value in vars(arguments).items()}
        data = {"environment": environment().as_dict(), "options": options, "results": results}
        arguments.json.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

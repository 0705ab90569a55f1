"""How many times faster than eager nn.RNN a backend is, over six shapes.

    python benchmarks/eager_ratio.py [--backend NAME] [--json FILE]

Both run the same call in one process and take their samples in turns; each figure is the ratio of
the medians. Forward is in evaluation mode without gradients; forward+backward computes the
gradients by the input, the initial state and every weight.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from statistics import geometric_mean
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import nn

import rnnjit
from rnnjit import RNNSpec
from rnnjit.bench import pass_times, random_call
from rnnjit.info import environment

SHAPES = (
    (5, 32, 10, 20),
    (100, 1, 64, 64),
    (100, 8, 128, 256),
    (100, 32, 128, 256),
    (100, 64, 512, 512),
    (1000, 16, 64, 128),
)


def measure(shape: tuple[int, int, int, int], backend: str, rounds: int) -> dict[str, Any]:
    """Times and ratios of one shape (T, B, I, H)."""
    T, B, I, H = shape
    torch.manual_seed(0)
    rnn = nn.RNN(I, H)
    modules = {"eager": rnn, "compiled": rnnjit.compile(rnn, backend=backend)}
    times = pass_times(modules, random_call(RNNSpec(I, H), T, B), rounds=rounds)
    eager, compiled = times["eager"], times["compiled"]
    return {
        "shape": {"T": T, "B": B, "I": I, "H": H},
        "eager": {"forward": asdict(eager.forward), "forward_backward": asdict(eager.both)},
        "compiled": {
            "forward": asdict(compiled.forward),
            "forward_backward": asdict(compiled.both),
        },
        "forward_ratio": eager.forward.median / compiled.forward.median,
        "forward_backward_ratio": eager.both.median / compiled.both.median,
    }


def show(results: list[dict[str, Any]], means: dict[str, float], backend: str) -> None:
    """Print one row for each shape, and the geometric means."""
    table = Table(title=f"{backend} against eager nn.RNN, in milliseconds", title_justify="left")
    table.add_column("T, B, I, H", no_wrap=True)
    for passes in ("forward", "fwd+bwd"):
        for heading in ("eager", backend, "ratio"):
            table.add_column(f"{passes}\n{heading}", justify="right")
    for result in results:
        cells = [", ".join(str(size) for size in result["shape"].values())]
        for name in ("forward", "forward_backward"):
            cells += [
                f"{result['eager'][name]['median'] * 1e3:.3g}",
                f"{result['compiled'][name]['median'] * 1e3:.3g}",
                f"{result[f'{name}_ratio']:.2f}",
            ]
        table.add_row(*cells)
    table.add_section()
    forward, both = means["forward"], means["forward_backward"]
    table.add_row("geometric mean", "", "", f"{forward:.2f}", "", "", f"{both:.2f}")
    Console().print(table)


def main() -> None:
    """Measure every shape, print the table, write the JSON file."""
    parser = argparse.ArgumentParser(description="Times faster than eager, over six shapes.")
    parser.add_argument("--backend", choices=("auto", *rnnjit.backends()), default="auto")
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--threads", type=int, help="default: PyTorch's own")
    parser.add_argument(
        "--shapes", type=int, nargs="+", choices=range(len(SHAPES)), help="only these of the six"
    )
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    chosen = SHAPES if arguments.shapes is None else [SHAPES[i] for i in arguments.shapes]
    progress = track(chosen, console=Console(stderr=True), transient=True)
    results = [measure(shape, arguments.backend, arguments.rounds) for shape in progress]
    means = {
        name: geometric_mean(result[f"{name}_ratio"] for result in results)
        for name in ("forward", "forward_backward")
    }
    show(results, means, arguments.backend)
    if arguments.json is not None:
        data = {
            "environment": environment().as_dict(),
            "backend": arguments.backend,
            "geometric_mean": means,
            "results": results,
        }
        arguments.json.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

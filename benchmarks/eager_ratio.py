"""How many times faster than eager nn.RNN backends are, over some shapes.

    python benchmarks/eager_ratio.py [--backend NAME ...] [--grid] [--json FILE]

All run the same call in one process and take their samples in turns; each figure is the ratio of
the medians. Forward is in evaluation mode without gradients; forward+backward computes the
gradients by the input, the initial state and every weight.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from statistics import geometric_mean
from typing import Any

import torch
from measures.speed import GRID
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
EAGER = "eager nn.RNN"
PASSES = ("forward", "forward_backward")


def measure(shape: tuple[int, int, int, int], backends: list[str], rounds: int) -> dict[str, Any]:
    """Times and ratios of one shape (T, B, I, H)."""
    T, B, I, H = shape
    torch.manual_seed(0)
    rnn = nn.RNN(I, H)
    modules: dict[str, nn.Module] = {EAGER: rnn}
    modules |= {name: rnnjit.compile(rnn, backend=name) for name in backends}
    times = pass_times(modules, random_call(RNNSpec(I, H), T, B), rounds=rounds)
    eager = times[EAGER]
    return {
        "shape": {"T": T, "B": B, "I": I, "H": H},
        "times": {
            name: {"forward": asdict(each.forward), "forward_backward": asdict(each.both)}
            for name, each in times.items()
        },
        "ratios": {
            name: {
                "forward": eager.forward.median / times[name].forward.median,
                "forward_backward": eager.both.median / times[name].both.median,
            }
            for name in backends
        },
    }


def show(results: list[dict[str, Any]], means: dict[str, Any], backends: list[str]) -> None:
    """Print one row for each shape, and the geometric means."""
    title = "Times faster than eager nn.RNN (its own time in milliseconds)"
    table = Table(title=title, title_justify="left")
    table.add_column("T, B, I, H", no_wrap=True)
    for passes in ("forward", "fwd+bwd"):
        for heading in ("eager", *backends):
            table.add_column(f"{passes}\n{heading}", justify="right", no_wrap=True)
    for result in results:
        cells = [", ".join(str(size) for size in result["shape"].values())]
        for name in PASSES:
            cells.append(f"{result['times'][EAGER][name]['median'] * 1e3:.3g}")
            cells += [f"{result['ratios'][backend][name]:.2f}" for backend in backends]
        table.add_row(*cells)
    table.add_section()
    row = ["geometric mean"]
    for name in PASSES:
        row += ["", *(f"{means[backend][name]:.2f}" for backend in backends)]
    table.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 120).print(table)


def main() -> None:
    """Measure every shape, print the table, write the JSON file."""
    parser = argparse.ArgumentParser(description="Times faster than eager.")
    parser.add_argument(
        "--backend", choices=("auto", *rnnjit.backends()), default=["auto"], nargs="+"
    )
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--threads", type=int, help="default: PyTorch's own")
    parser.add_argument(
        "--grid", action="store_true", help="the eleven shapes of engine.py, not the six"
    )
    parser.add_argument(
        "--shapes", type=int, nargs="+", metavar="N", help="only these, counted from 0"
    )
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    shapes = [tuple(shape) for shape in (GRID if arguments.grid else SHAPES)]
    if arguments.shapes is not None:
        if not set(arguments.shapes) <= set(range(len(shapes))):
            parser.error(f"--shapes must be from 0 to {len(shapes) - 1}")
        shapes = [shapes[i] for i in arguments.shapes]
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    progress = track(shapes, console=Console(stderr=True), transient=True)
    results = [measure(shape, arguments.backend, arguments.rounds) for shape in progress]
    means = {
        backend: {
            name: geometric_mean(result["ratios"][backend][name] for result in results)
            for name in PASSES
        }
        for backend in arguments.backend
    }
    show(results, means, arguments.backend)
    if arguments.json is not None:
        data = {"environment": environment().as_dict(), "geometric_mean": means, "results": results}
        arguments.json.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""What a layer takes on machines with more cores: a model fitted to times measured on this one.

    python benchmarks/predict.py [--points FILE] [--json FILE]

Times of the numba backend over random shapes, on one thread and on all, give the costs of the model
(see `measures/model.py`); every third shape is held back, and says how far predictions are off.
Then it predicts machines of 8, 32 and 96 cores like this one's, and where more threads stop paying.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from measures.model import Costs, Point, cut, errors, fit, predict
from measures.pairs import Shape
from measures.scaled import MEMORY, scaled
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import nn

import rnnjit
from rnnjit import RNNSpec
from rnnjit.bench import interleave, random_call
from rnnjit.bench.machine import measure_machine
from rnnjit.bench.records import Machine
from rnnjit.cpu import isa_named

SHAPES = (
    Shape(100, 1, 512, 512),
    Shape(100, 8, 128, 256),
    Shape(100, 32, 128, 256),
    Shape(100, 64, 512, 512),
    Shape(100, 256, 512, 512),
    Shape(20, 128, 1024, 1024),
    Shape(1000, 16, 64, 128),
)
#: Doubling the threads pays if it saves this share of the time.
_PAYS = 0.1
_MOST_WORK = 1.5e9


def shapes(count: int) -> list[Shape]:
    """Shapes spread evenly over the orders of magnitude, none too slow to measure often."""
    draw = random.Random(0)

    def size(low: int, high: int) -> int:
        return round(low * (high / low) ** draw.random())

    found: list[Shape] = []
    while len(found) < count:
        shape = Shape(size(1, 500), size(1, 128), size(16, 1024), size(16, 1024))
        if 2 * shape.T * shape.B * shape.H * (shape.I + shape.H) <= _MOST_WORK:
            found.append(shape)
    return found


def measure(wanted: Iterable[Shape], teams: Sequence[int], rounds: int) -> list[Point]:
    """The times of shapes on each number of threads, forward and training, taken in turns."""
    points = []
    for shape in wanted:
        T, B, I, H = shape
        rnn = rnnjit.compile(nn.RNN(I, H), backend="numba")
        call = random_call(RNNSpec(I, H), T, B)

        def forward(threads: int, rnn: nn.Module = rnn, call: Any = call) -> None:
            torch.set_num_threads(threads)
            with torch.no_grad():
                call.outputs(rnn)

        def training(threads: int, rnn: nn.Module = rnn, call: Any = call) -> None:
            torch.set_num_threads(threads)
            call.gradients(rnn)

        runs = {
            (threads, way is training): (lambda way=way, threads=threads: way(threads))
            for threads in teams
            for way in (forward, training)
        }
        times = interleave({str(key): run for key, run in runs.items()}, rounds=rounds)
        points += [Point(shape, *key, times[str(key)].median) for key in runs]
    return points


def held_back(points: Sequence[Point]) -> tuple[list[Point], list[Point]]:
    """Points to fit, and every third shape's to check with."""
    order = {shape: i for i, shape in enumerate(dict.fromkeys(point.shape for point in points))}
    kept = [point for point in points if order[point.shape] % 3]
    return kept, [point for point in points if not order[point.shape] % 3]


def stops_at(times: dict[int, float]) -> int:
    """The number of threads from which on doubling it saves less than a tenth."""
    teams = sorted(times)
    for now, more in pairwise(teams):
        if times[more] > (1 - _PAYS) * times[now]:
            return now
    return teams[-1]


def teams_up_to(cores: int) -> list[int]:
    """Powers of two up to a number of cores, and that number."""
    powers = [1 << k for k in range(cores.bit_length()) if 1 << k < cores]
    return [*powers, cores]


def show(console: Console, title: str, machine: Machine, costs: dict[bool, Costs]) -> Any:
    """Print and return the predictions for one machine."""
    table = Table(title=title, title_justify="left")
    teams = teams_up_to(machine.cpus)
    lanes = isa_named(machine.isa, "", (), "").lanes(4)
    for heading in ("T, B, I, H", "pass", "plan", *(f"{team}" for team in teams), "stops at"):
        table.add_column(heading, justify="right", no_wrap=True)
    found = []
    for shape in SHAPES:
        for training in (False, True):
            times = {
                team: predict(costs[training], machine, shape, team, training) for team in teams
            }
            chosen = cut(shape, machine.cpus, lanes)
            plan = f"{chosen.parts} columns" if chosen.parts > 1 else f"{chosen.slices} slices"
            cells = [f"{times[1] / times[team]:.1f}x" for team in teams]
            stop, name = stops_at(times), "training" if training else "forward"
            table.add_row(str(shape), name, plan, *cells, str(stop))
            found.append({"shape": shape, "pass": name, "seconds": times, "stops at": stop})
    console.print(table)
    return found


def checked(
    console: Console, points: Sequence[Point], machine: Machine, training: bool
) -> tuple[Costs, dict[str, dict[str, float]]]:
    """Costs fitted to two thirds of the points; how far off they are on these and on the others."""
    kept, back = held_back([point for point in points if point.training is training])
    costs, found = fit(kept, machine), {}
    for which, some in (("fitted", kept), ("held back", back)):
        off = np.abs(errors(costs, machine, some))
        name = f"{'training' if training else 'forward'}, {which}"
        found[name] = {
            "median": float(np.median(off)),
            "mean": float(np.mean(off)),
            "90%": float(np.quantile(off, 0.9)),
        }
        words = ", ".join(f"{value:.0%} ({key})" for key, value in found[name].items())
        console.print(f"{name}: {len(some)} times, off by {words}")
    return costs, found


def measured(arguments: argparse.Namespace) -> tuple[Machine, list[Point]]:
    """The machine and its times, from a file or measured now."""
    if arguments.points is not None:
        data = json.loads(arguments.points.read_text(encoding="utf-8"))
        points = [Point(Shape(*shape), *rest) for shape, *rest in data["points"]]
        return msgspec.convert(data["machine"], Machine), points
    teams = sorted({1, torch.get_num_threads()})
    machine = measure_machine(teams)
    progress = track(shapes(arguments.count), console=Console(stderr=True), transient=True)
    return machine, measure(progress, teams, arguments.rounds)


def main() -> None:
    """Measure or read the points, fit, check, predict."""
    parser = argparse.ArgumentParser(description="What a layer takes with more cores.")
    parser.add_argument("--points", type=Path, help="read measured times that --json wrote")
    parser.add_argument("--count", type=int, default=90, help="shapes to measure")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    machine, points = measured(arguments)
    console = Console(width=None if sys.stdout.isatty() else 120)
    costs: dict[bool, Costs] = {}
    off: dict[str, dict[str, float]] = {}
    for training in (False, True):
        costs[training], found = checked(console, points, machine, training)
        off |= found
    predicted = {
        cores: show(console, f"{cores} cores", scaled(machine, cores), costs) for cores in MEMORY
    }
    if arguments.json is not None:
        data = {
            "machine": msgspec.to_builtins(machine),
            "points": points,
            "costs": {"training" if key else "forward": value for key, value in costs.items()},
            "errors": off,
            "predicted": predicted,
        }
        arguments.json.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

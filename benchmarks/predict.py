"""Times of a layer on machines with more cores, by a model fitted to times on this one.

    python benchmarks/predict.py [--report FILE] [--json FILE]

Times of the numba backend over random shapes, on one thread and on all, give the costs of the model
(see `scaling_model.py`). Every third shape is held back, to measure the error of predictions. Then
it predicts machines of 8, 32 and 96 cores like this one's, and where more threads stop paying.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from scaling_model import MEMORY, Costs, cut, errors, fit, predict, scaled

from rnnjit.bench.cases import BOTH, GRID, Shape, each, random_shapes
from rnnjit.bench.contestants import find
from rnnjit.bench.plan import Plan
from rnnjit.bench.records import Case, Machine, Mode, Report, encode, read
from rnnjit.bench.report.results import Results, shape
from rnnjit.cli.bench import measure

PREDICTED = (*GRID[4:8], Shape(100, 256, 512, 512), *GRID[8:10])
#: Doubling the threads pays if it saves this share of the time.
_PAYS = 0.1
_MOST_PRODUCTS = 0.75e9


def random_cases(count: int, teams: tuple[int, ...]) -> tuple[Case, ...]:
    """Shapes spread evenly over the orders of magnitude, none too slow to measure often."""
    shapes = random_shapes(Shape(1, 1, 16, 16), Shape(500, 128, 1024, 1024), _MOST_PRODUCTS)
    return each(tuple(islice(shapes, count)), BOTH, teams, group="random")


def held_back(times: Mapping[Case, float]) -> tuple[dict[Case, float], dict[Case, float]]:
    """Times to fit, and every third shape's to check with."""
    order = {name: i for i, name in enumerate(dict.fromkeys(map(shape, times)))}
    kept = {case: taken for case, taken in times.items() if order[shape(case)] % 3}
    return kept, {case: taken for case, taken in times.items() if case not in kept}


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


def predictions(machine: Machine, costs: Mapping[Mode, Costs]) -> Table:
    """The predictions for one machine."""
    teams = teams_up_to(machine.cpus)
    table = Table(title=f"{machine.cpus} cores", title_justify="left")
    for heading in ("T, B, I, H", "mode", "plan", *map(str, teams), "stops at"):
        table.add_column(heading, justify="right", no_wrap=True)
    for each_shape in PREDICTED:
        for mode in BOTH:
            cases = each([each_shape], (mode,), teams)
            times = {case.threads: predict(costs[mode], machine, case) for case in cases}
            chosen = cut(cases[-1], machine)
            plan = f"{chosen.parts} columns" if chosen.parts > 1 else f"{chosen.slices} slices"
            faster = [f"{times[1] / times[team]:.1f}x" for team in teams]
            table.add_row(shape(cases[0]), mode, plan, *faster, str(stops_at(times)))
    return table


def checked(console: Console, mode: Mode, report: Report) -> Costs:
    """Costs fitted to two thirds of the shapes; prints how far off they are on all."""
    results = Results(report)
    found = {case: results.seconds("numba", case) for case in results.cases if case.mode == mode}
    kept, back = held_back({case: taken for case, taken in found.items() if taken is not None})
    costs = fit(kept, report.machine)
    for which, times in (("fitted", kept), ("held back", back)):
        off = np.abs(errors(costs, report.machine, times))
        figures = f"{np.median(off):.0%} (median), {off.mean():.0%} (mean)"
        most = f"{np.quantile(off, 0.9):.0%} (90%)"
        console.print(f"{mode}, {which}: {len(times)} times, off by {figures}, {most}")
    return costs


def main() -> None:
    """Measure or read the times, fit, check, predict."""
    parser = argparse.ArgumentParser(description="What a layer takes with more cores.")
    parser.add_argument("--report", type=Path, help="read measured times that --json wrote")
    parser.add_argument("--count", type=int, default=90, help="shapes to measure")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--json", type=Path, help="write the report of the measured times")
    options = parser.parse_args()
    if options.report is not None:
        report = read(options.report)
    else:
        teams = tuple(sorted({1, torch.get_num_threads()}))
        plan = Plan(rounds=options.rounds, sample=0.001, pause=0.02, memory=False)
        cases = random_cases(options.count, teams)
        report = measure("predict", cases, [find("numba")], plan, threads=teams)
    if options.json is not None:
        options.json.write_bytes(encode(report))
    console = Console(width=None if sys.stdout.isatty() else 120)
    costs = {mode: checked(console, mode, report) for mode in BOTH}
    for cores in MEMORY:
        console.print(predictions(scaled(report.machine, cores), costs))


if __name__ == "__main__":
    main()

"""Users' cells: rnnjit against the Python loop, `torch.compile` of it, and JAX's scan.

    python benchmarks/cells.py [--only CELL,...] [--without CONTESTANT,...] [--rounds N] [--small]
                               [--steps N] [--json FILE]
    python benchmarks/cells.py --report FILE

Cells of the gallery, forward and forward with backward, in float32. Each contestant has a process
of its own, which waits while others are timed; all take turns, round by round, and the figures are
medians. Before a contestant is timed, its results are compared with the Python loop in float64:
they may be a few times as far off as the Python loop in float32.

`torch.compile` unrolls the loop, and compiles for minutes where it has many steps: it is timed on
the first --steps of them, and its time is that of all steps in proportion. The table says so. The
LeakyRNN is timed without noise, which would be drawn anew by each contestant.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from multiprocessing import get_context
from pathlib import Path
from statistics import geometric_mean, median
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import numpy as np
import torch
from measures.cell_contestants import COMPILED, CONTESTANTS, JAX, LOOP, Arrays, Call
from rich.console import Console
from rich.table import Table

from rnnjit.runtime.object_cache import DIRECTORY_VARIABLE
from rnnjit.tools.environment import environment

SHAPES = (
    ("LeakyRNN", (1000, 100, 10, 500)),
    ("LeakyRNN", (70, 128, 16, 512)),
    ("PeepholeLSTM", (100, 32, 128, 256)),
    ("MGU", (100, 32, 128, 256)),
)
SMALL = tuple((cell, (20, 4, 3, 16)) for cell in ("LeakyRNN", "PeepholeLSTM", "MGU"))
OURS = "numba"
#: How many times faster than each the geometric mean is to be.
BARS = {LOOP: 4.0, COMPILED: 2.0, JAX: 1.5}
#: Errors may be this many times the Python loop's, plus units of rounding of the largest value.
_TIMES, _UNITS = 8.0, 16.0


def _serve(pipe: Any, contestant: str, call: Call) -> None:
    """A process of a contestant: answers "results", and how long one call takes to a number."""
    try:
        start = perf_counter()
        ready = CONTESTANTS[contestant](call)
        pipe.send(ready.results())
        pipe.send(perf_counter() - start)
        while (calls := pipe.recv()) is not None:
            start = perf_counter()
            for _ in range(calls):
                ready.run()
            pipe.send((perf_counter() - start) / calls)
    except Exception as error:  # noqa: BLE001 - whatever it is, the table says it
        pipe.send(f"{type(error).__name__}: {error}".splitlines()[0])


class Worker:
    """A contestant in its own process.

    Attributes:
        results: y and the gradients.
        seconds: of the preparation and the first call, with what it compiles.
    """

    def __init__(self, contestant: str, call: Call) -> None:
        context = get_context("spawn")
        self.pipe, end = context.Pipe()
        self.process = context.Process(target=_serve, args=(end, contestant, call))
        self.process.start()
        self.results: Arrays = self._received()
        self.seconds: float = self._received()

    def _received(self) -> Any:
        while not self.pipe.poll(1):
            if not self.process.is_alive() and not self.pipe.poll(0):
                raise RuntimeError(f"the process ended with status {self.process.exitcode}")
        found = self.pipe.recv()
        if isinstance(found, str):
            raise RuntimeError(found)
        return found

    def time(self, calls: int) -> float:
        """Seconds of one call, the mean of several."""
        self.pipe.send(calls)
        found: float = self._received()
        return found

    def close(self) -> None:
        """End the process."""
        if self.process.is_alive():
            self.pipe.send(None)
        self.process.join(30)


def shortened(call: Call, contestant: str, steps: int) -> Call:
    """The call that a contestant is timed on."""
    return replace(call, T=min(call.T, steps)) if contestant == COMPILED else call


def errors(found: Arrays, exact: Arrays) -> dict[str, float]:
    """The largest error of each result, as a share of its largest exact value."""
    return {
        name: float(np.abs(found[name] - value).max() / np.abs(value).max())
        for name, value in exact.items()
    }


def wrong(found: Arrays, eager: Arrays, exact: Arrays) -> list[str]:
    """The results that are further off than they may be."""
    if found.keys() != exact.keys():
        return [f"results {sorted(found)}, expected {sorted(exact)}"]
    unit = float(torch.finfo(torch.float32).eps)
    own, allowed = errors(found, exact), errors(eager, exact)
    return [
        f"{name}: error {own[name]:.1e}, the Python loop's {allowed[name]:.1e}"
        for name in exact
        if not own[name] <= _TIMES * allowed[name] + _UNITS * unit
    ]


def references(call: Call) -> tuple[Arrays, Arrays]:
    """The Python loop's results in float32 and in float64."""
    single, double = (replace(call, dtype=dtype) for dtype in ("float32", "float64"))
    return CONTESTANTS[LOOP](single).results(), CONTESTANTS[LOOP](double).results()


def measured(call: Call, rounds: int, steps: int, without: Sequence[str]) -> dict[str, Any]:
    """One row: for each contestant the median seconds of a call, or why there is none."""
    names = [name for name in CONTESTANTS if name not in without]
    expected = {T: references(replace(call, T=T)) for T in {call.T, min(call.T, steps)}}
    workers: dict[str, Worker] = {}
    row: dict[str, dict[str, Any]] = {}
    for name in names:
        own = shortened(call, name, steps)
        try:
            worker = Worker(name, own)
        except RuntimeError as error:
            row[name] = {"failed": str(error)}
            continue
        found = wrong(worker.results, *expected[own.T])
        if found:
            row[name] = {"failed": f"wrong: {'; '.join(found)}"}
            worker.close()
        else:
            workers[name] = worker
            row[name] = {"first": worker.seconds, "steps": own.T}
    samples: dict[str, list[float]] = {name: [] for name in workers}
    calls = {name: max(1, round(0.05 / worker.time(1))) for name, worker in workers.items()}
    for _ in range(rounds):
        for name, worker in workers.items():
            samples[name].append(worker.time(calls[name]))
    for name, worker in workers.items():
        worker.close()
        row[name]["seconds"] = median(samples[name]) * call.T / row[name]["steps"]
    return {**asdict(call), "contestants": row}


@contextmanager
def _cache(folder: str) -> Iterator[None]:
    before = os.environ.get(DIRECTORY_VARIABLE)
    os.environ[DIRECTORY_VARIABLE] = folder
    try:
        yield
    finally:
        if before is None:
            del os.environ[DIRECTORY_VARIABLE]
        else:
            os.environ[DIRECTORY_VARIABLE] = before


def compile_seconds(call: Call) -> dict[str, Any]:
    """Seconds until the first result of our own, in a new process: kernels compiled, and cached.

    Tracing and everything else of the first call counts; importing torch and rnnjit does not.
    """
    with TemporaryDirectory() as folder, _cache(folder):
        found: dict[str, Any] = {}
        for name in ("cold", "warm"):
            try:
                worker = Worker(OURS, call)
            except RuntimeError as error:
                return {"failed": str(error)}
            found[name] = worker.seconds - worker.time(1)
            worker.close()
    return found


def table(report: dict[str, Any]) -> Table:
    """The times in milliseconds, and how many times faster ours is."""
    console_table = Table(title=f"{report['cpu']}, {report['threads']} threads, float32; ms, ratio")
    for heading in ("cell", "(T, B, I, H)", "pass", *CONTESTANTS):
        console_table.add_column(heading, justify="left" if heading == "cell" else "right")
    for row in report["rows"]:
        sizes = ", ".join(str(row[name]) for name in "TBIH")
        passes = "forward + backward" if row["trains"] else "forward"
        ours = row["contestants"].get(OURS, {}).get("seconds")
        cells = [row["cell"], f"({sizes})", passes]
        for found in (row["contestants"].get(name, {}) for name in CONTESTANTS):
            if not found:
                cells.append("")
                continue
            if "failed" in found:
                cells.append(found["failed"])
                continue
            ratio = f", {found['seconds'] / ours:.1f}x" if ours else ""
            part = "" if found["steps"] == row["T"] else f" (of {found['steps']} steps)"
            cells.append(f"{found['seconds'] * 1e3:.2f}{ratio}{part}")
        console_table.add_row(*cells)
    return console_table


def verdicts(report: dict[str, Any]) -> Iterator[str]:
    """For each other contestant the geometric mean of the ratios and the least, and the bar."""
    for name, bar in BARS.items():
        ratios = [
            row["contestants"][name]["seconds"] / row["contestants"][OURS]["seconds"]
            for row in report["rows"]
            if all("seconds" in row["contestants"].get(each, {}) for each in (name, OURS))
        ]
        if ratios:
            mean = geometric_mean(ratios)
            verdict = "met" if mean >= bar and min(ratios) >= 1 else "missed"
            yield (
                f"{OURS} against {name}: {mean:.2f}x, at least {min(ratios):.2f}x "
                f"(bar {bar:g}x, never slower): {verdict}"
            )
    for cell, seconds in report["compile"].items():
        if "failed" in seconds:
            yield f"{cell}: {seconds['failed']}"
        else:
            yield f"{cell}: first call {seconds['cold']:.2f} s cold, {seconds['warm']:.2f} s warm"


def calls_of(shapes: Sequence[tuple[str, tuple[int, int, int, int]]], only: str) -> list[Call]:
    """The calls that were asked for.

    Raises:
        ValueError: `only` names no cell of the table.
    """
    wanted = set(filter(None, only.split(",")))
    known = {cell for cell, _ in shapes}
    if wanted - known:
        raise ValueError(f"--only: expected some of {', '.join(sorted(known))}, got {only}")
    return [
        Call(cell, *shape, trains)
        for cell, shape in shapes
        if not wanted or cell in wanted
        for trains in (False, True)
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", default="", help="names of cells")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=50, help="steps that torch.compile unrolls")
    parser.add_argument("--without", default="", help="contestants to leave out")
    parser.add_argument("--small", action="store_true", help="small sizes, to try this script")
    parser.add_argument("--json", type=Path, help="where to write the report")
    parser.add_argument("--report", type=Path, help="print this report instead")
    options = parser.parse_args(arguments)
    if min(options.rounds, options.steps) < 1:
        parser.error("--rounds and --steps must be 1 or more")
    console = Console(width=160)
    if options.report:
        report = json.loads(options.report.read_text(encoding="utf-8"))
    else:
        try:
            calls = calls_of(SMALL if options.small else SHAPES, options.only)
        except ValueError as error:
            parser.error(str(error))
        without = options.without.split(",")
        report = {
            "cpu": environment().cpu,
            "threads": torch.get_num_threads(),
            "rows": [measured(call, options.rounds, options.steps, without) for call in calls],
            "compile": {call.cell: compile_seconds(call) for call in calls if call.trains},
        }
        if options.json:
            options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    console.print(table(report))
    for line in verdicts(report):
        console.print(line, highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())

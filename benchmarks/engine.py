"""The CPU engine's table: what it must reach, and what it reaches on this machine.

    python benchmarks/engine.py [--only ROW,...] [--rounds N] [--quick] [--json FILE]

Every ratio is against eager nn.RNN in the same process, the samples taken in turns, of medians.
The machine's multiply-adds and what it reads from its caches and memory are measured in the same
run. Forward is under inference_mode, entered once, with the initial state given; forward+backward
computes the gradients by the input and every weight, which are None before each pass. After Ctrl-C
it prints what it has.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter

import torch
from measures import fresh, machine, packed, speed, spread
from measures.pairs import Bench
from measures.report import Finding, Section, bars
from rich.console import Console

from rnnjit.info import environment

ROWS: dict[str, tuple[str, Callable[[Bench, Section], None]]] = {
    "machine": ("the most that the machine can do", machine.fill),
    "grid": ("against eager over the grid", speed.grid),
    "compute": ("compute-bound shapes", speed.compute),
    "single": ("one sequence at a time", speed.single),
    "step": ("a streaming step, the state carried by the caller", speed.step),
    "any": ("random shapes, the worst of them", spread.anywhere),
    "packed": ("PackedSequence, lengths from 1 to T at random", packed.packed),
    "variants": ("other kinds of nn.RNN, against float32 tanh of 1 layer", speed.variants),
    "memory": ("memory of training", fresh.memory),
    "start": ("from the start of a process", fresh.start),
    "growth": ("growth, tile edges, new shapes", spread.growth),
}
_WIDTH = 132


def run(bench: Bench, rows: Sequence[str], console: Console) -> list[Section]:
    """Measure rows, printing each one; after Ctrl-C, what there is."""
    sections = []
    for name in rows:
        title, fill = ROWS[name]
        section = Section(name, title)
        sections.append(section)
        start = perf_counter()
        try:
            fill(bench, section)
        except KeyboardInterrupt:
            console.print(f"[bold red]{name}: interrupted")
            break
        finally:
            section.data["seconds"] = perf_counter() - start
            show(section, console)
    return sections


def show(section: Section, console: Console) -> None:
    """Print what a row found."""
    table = section.table()
    if table is not None:
        console.print(table)
    if section.findings:
        console.print(bars(f"{section.name}: against the bars", section.findings))


def summary(findings: Sequence[Finding], console: Console) -> dict[str, int]:
    """Print all that has a bar, and how much of it is met."""
    judged = [finding for finding in findings if finding.bar is not None]
    counts = {"met": sum(bool(f.met) for f in judged), "bars": len(judged)}
    if judged:
        console.print(bars("summary", judged))
    console.print(f"{counts['met']} of {counts['bars']} bars met")
    return counts


def chosen(text: str) -> list[str]:
    """Rows named in a list with commas, in the order of the table."""
    names = text.split(",")
    unknown = sorted(set(names) - set(ROWS))
    if unknown:
        raise argparse.ArgumentTypeError(f"no rows {unknown}: choose from {','.join(ROWS)}")
    return [name for name in ROWS if name in names]


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="The CPU engine's table.")
    parser.add_argument("--only", type=chosen, default=list(ROWS), metavar="ROW,...")
    parser.add_argument("--rounds", type=int, default=25, help="samples of each time, at most")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--sample-seconds", type=float, default=60.0, help="for random shapes (row any)"
    )
    parser.add_argument("--quick", action="store_true", help="few shapes and samples: a smoke test")
    parser.add_argument("--json", type=Path)
    found = parser.parse_args()
    if found.rounds < 1 or found.threads < 1:
        parser.error("--rounds and --threads must be at least 1")
    return found


def main() -> None:
    """Measure, print the tables, write the JSON file."""
    wanted = arguments()
    torch.set_num_threads(wanted.threads)
    console = Console()
    if not console.is_terminal:
        console = Console(width=_WIDTH)
    seconds = 1.0 if wanted.quick else wanted.sample_seconds
    bench = Bench(wanted.rounds, wanted.threads, wanted.quick, seconds)
    sections = run(bench, wanted.only, console)
    counts = summary([finding for section in sections for finding in section.findings], console)
    if wanted.json is not None:
        data = {
            "environment": environment().as_dict(),
            "settings": {"rounds": wanted.rounds, "quick": wanted.quick, "sample_seconds": seconds},
            "counts": counts,
            "rows": {section.name: section.as_dict() for section in sections},
        }
        wanted.json.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

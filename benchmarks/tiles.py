"""The register tiles of the numba backend on this machine, beside its peak of multiply-adds.

    python benchmarks/tiles.py [--json FILE]
    python benchmarks/tiles.py --report FILE ...

It prints how fast one thread runs each tile, alone in its loop over packed weights, with each block
of k, for both element types, and what the backend chooses. --json writes the rates; --report prints
such files of several machines beside each other.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from rnnjit.bench.peaks import fma_peak
from rnnjit.codegen.host import host_isa
from rnnjit.codegen.kernel import Kind
from rnnjit.ir import RNN_TANH
from rnnjit.runtime.host import processor
from rnnjit_numba import tile_choice
from rnnjit_numba.tile_measurement import measure
from rnnjit_numba.tile_shapes import K_BLOCKS

#: Of a measured forward pass: enough that packing the weights takes less than a hundredth of it.
_STEPS, _SECONDS = 30, 3.0


def measured() -> dict[str, Any]:
    """The rates of this machine, in GFLOP/s."""
    isa, floats = host_isa(), {}
    for dtype in (torch.float32, torch.float64):
        rates = measure(Kind(dtype, RNN_TANH), steps=_STEPS, seconds=_SECONDS)
        floats[str(dtype).removeprefix("torch.")] = {
            "peak": fma_peak(8 * dtype.itemsize, 1) / 1e9,
            "tiles": {str(tile): rate for tile, rate in rates.tiles.items()},
            "sums": {str(shape): rate for shape, rate in rates.outer.items()},
            "chosen": str(tile_choice.best_tiling(isa, rates, tile_choice.MANY)),
            "chosen for sums": str(tile_choice.best_outer(isa, rates)),
        }
    return {"processor": processor()[0], "llvm": isa.cpu, "isa": isa.name, **floats}


def table(report: dict[str, Any], kind: str) -> Table:
    """The rates of one element type, in GFLOP/s and as shares of the peak."""
    rates, peak = report[kind]["tiles"], report[kind]["peak"]

    def cell(rate: float | None) -> str:
        return "" if rate is None else f"{rate:.0f} ({rate / peak:.0%})"

    title = (
        f"{report['processor']} ({report['llvm']}), {report['isa']}, {kind}: one thread, "
        f"GFLOP/s and share of the peak of {peak:.0f}; chosen: {report[kind]['chosen']}, for sums "
        f"{report[kind]['chosen for sums']}"
    )
    blocks = [f"k in blocks of {k}" if k else "all of k" for k in K_BLOCKS]
    found = Table("tile", *blocks, "sums", title=title, title_justify="left")
    for shape in dict.fromkeys(
        (*(name.partition("/")[0] for name in rates), *report[kind]["sums"])
    ):
        names = [f"{shape}/{k}" if k else shape for k in K_BLOCKS]
        sums = report[kind]["sums"].get(shape)
        found.add_row(shape, *(cell(rates.get(name)) for name in names), cell(sums))
    return found


def main() -> None:
    """Measure or read reports, print the tables, write the JSON file."""
    parser = argparse.ArgumentParser(description="The register tiles of the numba backend.")
    parser.add_argument("--json", type=Path, help="write the rates")
    parser.add_argument("--report", type=Path, nargs="+", help="print what --json wrote")
    options = parser.parse_args()
    if options.report is None:
        reports = [measured()]
    else:
        reports = [json.loads(path.read_text()) for path in options.report]
    if options.json is not None:
        options.json.write_text(json.dumps(reports[0], indent=2) + "\n")
    console = Console()
    if not console.is_terminal:
        console = Console(width=100)
    for report in reports:
        for kind in ("float32", "float64"):
            console.print(table(report, kind))


if __name__ == "__main__":
    main()

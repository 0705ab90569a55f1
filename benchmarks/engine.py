"""The CPU engine's table: the bars that it is to reach, and its figures on this machine.

    python benchmarks/engine.py [--cell lstm] [--only ROW,...] [--rounds N] [--quick] [--json FILE]
    python benchmarks/engine.py [--cell lstm] --report FILE

It measures eager PyTorch and a backend as `rnnjit bench` does, and compares the report with the
bars; --json writes the report, which --report reads. After Ctrl-C it prints what it has measured.
The bars on the speed-up over eager and on the share of the peak are nn.RNN's: the figures of
another --cell stand without them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice, pairwise, product
from pathlib import Path
from statistics import geometric_mean
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table

from rnnjit.bench import records, roofline
from rnnjit.bench.arrays import draw, lengths_of
from rnnjit.bench.cases import (
    BOTH,
    COMPUTE_BOUND,
    EMPTY_CACHE,
    FILLED_CACHE,
    GRID,
    LAST_STATE,
    Shape,
    each,
    of_cell,
    random_shapes,
)
from rnnjit.bench.contestants import find
from rnnjit.bench.kinds import KINDS
from rnnjit.bench.plan import Plan
from rnnjit.bench.records import Case, CellName, Mode, Report
from rnnjit.bench.report.results import Results, described, duration, shape, size, times
from rnnjit.cli.bench import measure

#: H of single sequences, and their steps: the time of a step is the difference of two calls.
READING, READING_STEPS = (256, 384, 512, 768, 1024), (200, 1000)
#: The share of the time of reading W_hh that a step of one row is to reach.
_READ_SHARE = 100 / 1.15
SINGLE = ((100, 1, 64, 64), (100, 1, 128, 256), (100, 1, 512, 512))
PACKED = ((100, 8, 128, 256), (100, 32, 128, 256), (1000, 16, 64, 128))
LONG, LONG_QUICK = (4000, 16, 64, 128), (200, 16, 64, 128)
#: The speed-ups over eager and the shares of the multiply-add peak that nn.RNN is to reach.
GRID_BARS = {"forward": 6.0, "training": 6.5}
PEAK_BARS = {"forward": 85.0, "training": 75.0}
STEP_BAR, LONG_BARS = 4.0, {"forward": 10.0, "training": 60.0}
#: Other kinds of the layer, compared with one plain layer in float32 at the same shapes.
VARIANTS: dict[str, dict[str, Any]] = {
    "bidirectional": {"bidirectional": True},
    "2 layers": {"layers": 2},
    "3 layers": {"layers": 3},
    "relu": {"nonlinearity": "relu"},
    "float64": {"dtype": "float64"},
    "proj_size 64": {"proj_size": 64},
}
VARIANT_SHAPES = ((100, 1, 128, 256), (100, 8, 128, 256), (100, 32, 128, 256), COMPUTE_BOUND[0])
TRAINING_MEMORY = ((1000, 16, 64, 128), (100, 64, 512, 512), (1000, 64, 256, 256))
SWEEPS = {
    "T": [(T, 32, 128, 256) for T in (50, 100, 200, 400, 800, 1600)],
    "B": [(50, B, 128, 256) for B in (16, 32, 64, 128, 256)],
}
EDGES = {
    "H=255, 256, 257 at B=32": [(100, 32, 128, H) for H in (255, 256, 257)],
    "H=255, 256, 257 at B=1": [(100, 1, 128, H) for H in (255, 256, 257)],
    "B=15, 16, 17": [(100, B, 128, 256) for B in (15, 16, 17)],
}
_RANDOM, _RANDOM_QUICK = 200, 2
#: Ratios from here on count as no slower than eager: two runs repeat no closer.
_EQUAL = 0.97
#: Rows of a lane or two, and layers that are all weights.
_NARROW = [
    (T, B, I, H) for T, B in ((1, 4000), (20, 4000), (3, 100_000)) for I, H in ((1, 1), (16, 2))
]
_DEEP = [(1, B, 1024, 1024) for B in (1, 32)]
_WORST = 10


@dataclass(frozen=True)
class Finding:
    """One figure of the table.

    Attributes:
        what: the quantity.
        measured: the figure.
        bar: what it must reach, or None if it is for information.
        unit: of the figure and its bar.
        at_most: whether the bar is an upper one.
    """

    what: str
    measured: float
    bar: float | None = None
    unit: str = "x"
    at_most: bool = False

    @property
    def met(self) -> bool | None:
        """Whether the bar is reached; None without a bar."""
        if self.bar is None:
            return None
        return self.measured <= self.bar if self.at_most else self.measured >= self.bar

    def cells(self) -> tuple[str, str, str, str]:
        """The quantity, its figure, its bar, and whether it is met."""
        sign = "<=" if self.at_most else ">="
        bar = "" if self.bar is None else f"{sign} {self.bar:.3g} {self.unit}"
        verdict = {True: "[green]met", False: "[bold red]missed", None: ""}[self.met]
        return self.what, f"{self.measured:.3g} {self.unit}", bar, verdict


class UnmeasuredError(Exception):
    """A figure depends on a case that has no time."""


class Measured:
    """The measurements of eager and a backend, for the rows of the table."""

    def __init__(self, report: Report) -> None:
        self.results = Results(report)
        self._backend = next(each.name for each in report.contestants if each.kind == "backend")

    def seconds(self, case: Case, contestant: str = "") -> float:
        """Seconds of one call, of the backend unless another contestant is named."""
        found = self.results.seconds(contestant or self._backend, case)
        if found is None:
            raise UnmeasuredError(f"no time for {described(case)}, {case.mode}")
        return found

    def eager(self, case: Case) -> float:
        """Seconds of one call of eager."""
        return self.seconds(case, self.results.baseline)

    def ratio(self, case: Case) -> float:
        """The speed-up over eager."""
        return self.eager(case) / self.seconds(case)

    def share_of_peak(self, case: Case) -> float:
        """The share of the machine's peak of multiply-adds."""
        machine = self.results.report.machine
        found = roofline.share_of_peak(case, self.seconds(case), machine)
        if found is None:
            raise UnmeasuredError("the machine's peaks were not measured")
        return found

    def share_of_reading(self, short: Case, long: Case) -> float:
        """The least time of reading the recurrent weights at a step, as a share of a step's time.

        A step's time is what a call takes longer that has more steps.
        """
        machine = self.results.report.machine
        least, most = (roofline.reading(case, machine) for case in (short, long))
        if least is None or most is None:
            raise UnmeasuredError("the machine's bandwidths were not measured")
        return (most - least) / (self.seconds(long) - self.seconds(short))

    def memory(self, case: Case) -> float:
        """Memory that a call takes beyond its inputs, relative to eager's."""
        own, eager = (
            self.results.of(name, case) for name in (self._backend, self.results.baseline)
        )
        if own is None or eager is None or own.memory is None or not eager.memory:
            raise UnmeasuredError(f"no memory for {described(case)}")
        drawn = draw(case)
        inputs = (drawn.x, *drawn.hx, *drawn.weights.values(), drawn.grad_y, *drawn.grad_hn)
        given = sum(array.nbytes for array in inputs)
        return (own.memory - given) / (eager.memory - given)


Findings = Iterator[Finding]


def _of(cases: Sequence[Case], **fields: Any) -> list[Case]:
    """The cases that have these fields."""
    return [c for c in cases if all(getattr(c, k) == value for k, value in fields.items())]


def _bar(cases: Sequence[Case], bar: float) -> float | None:
    """The bar on the speed of these cases, which is nn.RNN's; None for another layer."""
    return bar if all(case.cell == "rnn" for case in cases) else None


def grid(m: Measured, cases: Sequence[Case]) -> Findings:
    """The geometric means of the grid."""
    for mode, bar in GRID_BARS.items():
        of_mode = _of(cases, mode=mode)
        mean = geometric_mean(map(m.ratio, of_mode))
        yield Finding(f"{mode}, geometric mean of the grid", mean, _bar(of_mode, bar))


def compute(m: Measured, cases: Sequence[Case]) -> Findings:
    """The share of the machine's peak in compute-bound shapes."""
    for case in cases:
        what = f"{case.mode} ({shape(case)}), share of the multiply-add peak"
        bar = _bar([case], PEAK_BARS[case.mode])
        yield Finding(what, 100 * m.share_of_peak(case), bar, "%")


def single(m: Measured, cases: Sequence[Case]) -> Findings:
    """One sequence at a time: against eager, and a step against reading W_hh."""
    for case in _of(cases, group="grid"):
        yield Finding(f"forward ({shape(case)})", m.ratio(case))
    reading = _of(cases, group="reading")
    for H in dict.fromkeys(case.H for case in reading):
        short, long = _of(reading, H=H)
        share = m.share_of_reading(short, long)
        yield Finding(f"a step of H={H}, share of reading W_hh", 100 * share, _READ_SHARE, "%")


def last(m: Measured, cases: Sequence[Case]) -> Findings:
    """Training with a loss on the last state alone."""
    for case in cases:
        yield Finding(f"loss on the last state ({shape(case)})", m.ratio(case))


def step(m: Measured, cases: Sequence[Case]) -> Findings:
    """A streaming step."""
    (case,) = cases
    yield Finding(f"streaming step ({shape(case)})", m.ratio(case), _bar(cases, STEP_BAR))
    yield Finding(f"streaming step ({shape(case)}), a call", m.seconds(case) * 1e6, unit="us")


def anywhere(m: Measured, cases: Sequence[Case]) -> Findings:
    """The number of random and extreme shapes at which eager is faster."""
    for mode in BOTH:
        ratios = [m.ratio(case) for case in _of(cases, mode=mode)]
        what = f"{mode}: slower than eager, of {len(ratios)} shapes"
        slower = sum(ratio < _EQUAL for ratio in ratios)
        yield Finding(what, slower, 0, "shapes", at_most=True)
        yield Finding(f"{mode}: least ratio", min(ratios))


def packed(m: Measured, cases: Sequence[Case]) -> Findings:
    """Time per valid row against the dense call, and one long batch against eager."""
    for mode, bar in LONG_BARS.items():
        *pairs, long = _of(cases, mode=mode, packed=True)
        over = []
        for case in pairs:
            (dense,) = _of(cases, mode=mode, packed=False, T=case.T, B=case.B, H=case.H)
            share = int(lengths_of(case).sum()) / (case.T * case.B)
            over.append(m.seconds(case) / (share * m.seconds(dense)))
        what = f"{mode}: packed time per valid row over dense, most"
        yield Finding(what, max(over), 1.1, at_most=True)
        yield Finding(f"{mode}: packed ({shape(long)})", m.ratio(long), _bar([long], bar))


def variants(m: Measured, cases: Sequence[Case]) -> Findings:
    """Other kinds of the layer against the plain one: at most 20% less speed-up.

    A vector holds half as many float64 elements, so float64 is compared with half float32's speed.
    """

    def share(case: Case, plain: Case) -> float:
        if case.dtype == plain.dtype:
            return m.ratio(case) / m.ratio(plain)
        return 2 * m.seconds(plain) / m.seconds(case)

    for name, mode in product(VARIANTS, BOTH):
        kind, plain = (_of(cases, mode=mode, group=group) for group in (name, "grid"))
        if not kind:
            continue  # such a layer has no such option
        least = min(map(share, kind, plain))
        of = "half the speed" if name == "float64" else "the ratio"
        what = f"{name}, {mode}: least share of {of} of one plain layer in float32"
        yield Finding(what, 100 * least, 80.0, "%")


def memory(m: Measured, cases: Sequence[Case]) -> Findings:
    """The peak of a training step."""
    most = max(m.memory(case) for case in cases)
    yield Finding("peak training memory over eager's, most", most, 0.6, at_most=True)


def start(m: Measured, cases: Sequence[Case]) -> Findings:
    """A process from its start to its first gradients, with an empty and a filled cache."""
    for case, bar in zip(cases, (3.0, 0.5), strict=True):
        beyond = m.seconds(case) - m.eager(case)
        what = f"first training call beyond eager's, {case.group.partition(', ')[2]}"
        yield Finding(what, beyond, bar, "s", at_most=True)


def growth(m: Measured, cases: Sequence[Case]) -> Findings:
    """How time grows with T and B, and what tile edges cost."""
    for size_, mode in product(SWEEPS, BOTH):
        taken = [m.seconds(case) for case in _of(cases, mode=mode, group=size_)]
        most = max(large / small for small, large in pairwise(taken))
        what = f"{mode}: most that doubling {size_} multiplies the time by"
        yield Finding(what, most, 2.3, at_most=True)
    for (edge, shapes), mode in product(EDGES.items(), BOTH):
        costs = [
            m.seconds(case) / roofline.work(case).flops
            for case in _of(cases, mode=mode, group="edges")
            if (case.T, case.B, case.I, case.H) in shapes
        ]
        cliff = 100 * (max(costs) / min(costs) - 1)
        yield Finding(f"{mode}: {edge}, spread of time per work", cliff, 30.0, "%", at_most=True)


#: Maps the numbers of threads, and whether the run is quick, to cases, whatever their cell.
Cases = Callable[[tuple[int, ...], bool], tuple[Case, ...]]


class Row(NamedTuple):
    """A row of the table.

    Attributes:
        title: what it is about.
        judge: computes figures from the measurements of the row's cases.
        build: the cases to measure, among them some that not every kind of layer offers.
    """

    title: str
    judge: Callable[[Measured, Sequence[Case]], Findings]
    build: Cases

    def cases(
        self, threads: tuple[int, ...], quick: bool, cell: CellName = "rnn"
    ) -> tuple[Case, ...]:
        """The cases of a kind of layer."""
        return of_cell(self.build(threads, quick), cell)


def _shapes(shapes: Sequence[tuple[int, int, int, int]], *modes: Mode) -> Cases:
    """Cases of shapes; a quick run has the first one only."""
    return lambda threads, quick: each(shapes[: 1 if quick else None], modes, threads)


def _single_cases(threads: tuple[int, ...], quick: bool) -> tuple[Case, ...]:
    found = each(SINGLE[: 1 if quick else None], ("forward",), threads)
    shapes = [(T, 1, 1, H) for H in READING for T in READING_STEPS]
    return found if quick else found + each(shapes, ("forward",), threads, group="reading")


def _any_cases(threads: tuple[int, ...], quick: bool) -> tuple[Case, ...]:
    shapes = random_shapes(Shape(1, 1, 1, 1), Shape(2000, 256, 2048, 2048), most_products=1e9)
    count = _RANDOM_QUICK if quick else _RANDOM
    found = each(tuple(islice(shapes, count)), BOTH, threads, group="random")
    if not quick:
        found += each(_NARROW, BOTH, threads, group="narrow")
        found += each(_DEEP, BOTH, threads, group="deep", layers=8)
    return found


def _packed_cases(threads: tuple[int, ...], quick: bool) -> tuple[Case, ...]:
    shapes = PACKED[:1] if quick else PACKED
    long = LONG_QUICK if quick else LONG
    return each(shapes, BOTH, threads) + each((*shapes, long), BOTH, threads, packed=True)


def _variant_cases(threads: tuple[int, ...], quick: bool) -> tuple[Case, ...]:
    shapes = VARIANT_SHAPES[1:2] if quick else VARIANT_SHAPES
    found = each(shapes, BOTH, threads)
    for name, fields in VARIANTS.items():
        found += each(shapes, BOTH, threads, group=name, **fields)
    return found


def _growth_cases(threads: tuple[int, ...], quick: bool) -> tuple[Case, ...]:
    found: tuple[Case, ...] = ()
    for size_, shapes in SWEEPS.items():
        found += each(shapes[: 2 if quick else None], BOTH, threads, group=size_)
    for shapes in EDGES.values():
        found += each(shapes, BOTH, threads, group="edges")
    return found


def _start_cases(threads: tuple[int, ...], quick: bool) -> tuple[Case, ...]:
    groups = (EMPTY_CACHE, FILLED_CACHE)
    cold = partial(each, [(20, 8, 64, 128)], ("cold training",), threads)
    return tuple(case for group in groups for case in cold(group=group))


ROWS = {
    "grid": Row("against eager over the grid", grid, _shapes(GRID, *BOTH)),
    "compute": Row("compute-bound shapes", compute, _shapes(COMPUTE_BOUND, *BOTH)),
    "single": Row("one sequence at a time", single, _single_cases),
    "last": Row("a loss on the last state", last, _shapes(LAST_STATE, "last state")),
    "step": Row("a streaming step", step, _shapes(((1, 1, 32, 64),), "streaming")),
    "any": Row("random and extreme shapes", anywhere, _any_cases),
    "packed": Row("PackedSequence, lengths from 1 to T at random", packed, _packed_cases),
    "variants": Row("other kinds of the layer", variants, _variant_cases),
    "memory": Row("memory of training", memory, _shapes(TRAINING_MEMORY, "training")),
    "start": Row("from the start of a process", start, _start_cases),
    "growth": Row("growth and tile edges", growth, _growth_cases),
}


def judged(row: Row, measured: Measured, cases: Sequence[Case]) -> list[Finding]:
    """The figures of a row that could be measured."""
    found = []
    try:
        for finding in row.judge(measured, cases):
            found.append(finding)
    except UnmeasuredError as error:
        print(f"{row.title}: {error}", file=sys.stderr)
    return found


def show(console: Console, name: str, cases: Sequence[Case], measured: Measured) -> None:
    """Print the measurements of a row; of random shapes, the worst."""
    headings = ("T, B, I, H", "mode", "eager", "backend", "ratio", "of peak", "limit", "bound by")
    table = Table(*headings, title=f"{name}: {ROWS[name].title}", title_justify="left")
    lines = []
    for case in cases:
        try:
            seconds, ratio = (measured.eager(case), measured.seconds(case)), measured.ratio(case)
        except UnmeasuredError:
            continue
        machine, own = measured.results.report.machine, seconds[1]
        share = roofline.share_of_peak(case, own, machine)
        bound = None if case.cold else roofline.bound(case, own, machine)
        limits = (f"{share:.1%}", f"{bound.share:.0%}", bound.name) if share and bound else ()
        cells = (described(case), case.mode, *map(duration, seconds), times(ratio), *limits)
        lines.append((ratio, cells))
    if name == "any":
        lines = sorted(lines)[:_WORST]
    for _, cells in lines:
        table.add_row(*cells)
    console.print(table)


def machine(report: Report) -> Table:
    """The machine's peaks."""
    table = Table(
        title=f"machine: {report.machine.cpu}, {report.machine.isa}", title_justify="left"
    )
    for heading in ("what", "threads", "measured"):
        table.add_column(heading, justify="left" if heading == "what" else "right")
    for peak in report.machine.peaks:
        rate = f"{peak.flops * 1e-9:.3g} GFLOP/s"
        table.add_row(f"multiply-adds, {peak.dtype}", str(peak.threads), rate)
    for band in report.machine.bandwidths:
        of = f", {size(band.capacity)} a thread" if band.capacity else ""
        rate = f"{band.rate * 1e-9:.3g} GB/s"
        table.add_row(f"reading {band.level}{of}", str(band.threads), rate)
    return table


def bars(found: dict[str, list[Finding]]) -> Table:
    """The figures next to their bars."""
    table = Table("row", "what", title="against the bars", title_justify="left")
    for heading in ("measured", "bar"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("")
    for name, findings in found.items():
        for first, finding in enumerate(findings):
            table.add_row("" if first else name, *finding.cells())
        table.add_section()
    return table


def chosen(text: str) -> list[str]:
    """Rows named in a list with commas, in the order of the table."""
    names = text.split(",")
    unknown = sorted(set(names) - set(ROWS))
    if unknown:
        raise argparse.ArgumentTypeError(f"no rows {unknown}: choose from {','.join(ROWS)}")
    return [name for name in ROWS if name in names]


def main() -> None:
    """Measure or read a report, print the tables, write the JSON file."""
    parser = argparse.ArgumentParser(description="The CPU engine's table.")
    parser.add_argument("--only", type=chosen, default=list(ROWS), metavar="ROW,...")
    parser.add_argument("--cell", choices=KINDS, default="rnn", help="the kind of layer")
    parser.add_argument("--backend", default="numba")
    parser.add_argument("--rounds", type=int, default=11, help="samples of each time")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--quick", action="store_true", help="few shapes and samples: a smoke test")
    parser.add_argument("--json", type=Path, help="write the report")
    parser.add_argument("--report", type=Path, help="judge a report that --json wrote")
    options = parser.parse_args()
    if options.rounds < 1 or options.threads < 1:
        parser.error("--rounds and --threads must be at least 1")
    threads, quick = (options.threads,), options.quick
    rows = {name: ROWS[name] for name in options.only}
    cases = {name: row.cases(threads, quick, options.cell) for name, row in rows.items()}
    if options.report is not None:
        report = records.read(options.report)
    else:
        plan = Plan(rounds=options.rounds, sample=0.005, starts=5, most=6.0)
        if quick:
            plan = Plan(rounds=1, sample=1e-3, pause=0.0, starts=1)
        wanted = tuple(dict.fromkeys(case for each in cases.values() for case in each))
        contestants = [find("eager"), find(options.backend)]
        report = measure("engine", wanted, contestants, plan, threads=threads, quick=quick)
        if options.json is not None:
            options.json.write_bytes(records.encode(report))
    console, measured, found = Console(), Measured(report), {}
    if not console.is_terminal:
        console = Console(width=132)
    console.print(machine(report))
    for name, row in rows.items():
        show(console, name, cases[name], measured)
        found[name] = judged(row, measured, cases[name])
    console.print(bars(found))
    met = [each.met for findings in found.values() for each in findings if each.met is not None]
    console.print(f"{sum(met)} of {len(met)} bars met")


if __name__ == "__main__":
    main()

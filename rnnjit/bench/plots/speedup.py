"""How many times as fast as eager each contestant is, shape by shape."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from matplotlib.figure import Figure

from rnnjit.bench.plots.dots import dots
from rnnjit.bench.plots.render import Plot
from rnnjit.bench.plots.style import Theme
from rnnjit.bench.records import Case
from rnnjit.bench.results import Results, Slice, threads

Ratios = dict[Case, dict[str, float]]


def plots(results: Results) -> Iterator[Plot]:
    """A plot for each mode, dtype and number of threads, of every shape that is no sweep's."""
    shapes = [case for case in results.shapes() if case.mode != "cold start"]
    for part, cases in results.slices(shapes).items():
        ratios = {case: found for case in cases if (found := _ratios(results, case))}
        if ratios:
            key = f"speedup-{part.mode}-{part.dtype}-{part.threads}"
            yield Plot(key, f"Speed-up by shape: {part}", partial(figure, results, part, ratios))


def figure(results: Results, part: Slice, ratios: Ratios, theme: Theme) -> Figure:
    """A row for each case and a mark for each contestant but eager, which is a line at 1."""
    return dots(
        results,
        theme,
        f"Speed-up by shape: {part.mode}",
        f"to eager's speed, further right is better · {part.dtype}, {threads(part.threads)}",
        ratios,
        lambda ratio: f"{ratio:g}x",
        xlabel="times as fast as eager, the grey line",
        line=1.0,
    ).figure


def _ratios(results: Results, case: Case) -> dict[str, float]:
    """The ratio of each contestant but eager that has one."""
    return {
        contender.name: ratio
        for contender in results.contenders
        if contender.kind != "baseline"
        and (ratio := results.ratio(contender.name, case)) is not None
    }

"""By how much a process grows during the calls, shape by shape."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from matplotlib.figure import Figure

from rnnjit.bench.plots.dots import dots
from rnnjit.bench.plots.render import Plot
from rnnjit.bench.plots.style import Theme
from rnnjit.bench.records import Case
from rnnjit.bench.results import Results, Slice, threads

#: A process cannot grow by less than a page; no growth is drawn as one.
_PAGE = 4096
_MIB = 2**20

Growths = dict[Case, dict[str, float]]


def plots(results: Results) -> Iterator[Plot]:
    """A plot for each mode, dtype and number of threads in which memory was measured."""
    shapes = [case for case in results.shapes() if case.mode != "cold start"]
    for part, cases in results.slices(shapes).items():
        growths = {case: found for case in cases if (found := _growths(results, case))}
        if growths:
            key = f"memory-{part.mode}-{part.dtype}-{part.threads}"
            yield Plot(key, f"Memory by shape: {part}", partial(figure, results, part, growths))


def figure(results: Results, part: Slice, growths: Growths, theme: Theme) -> Figure:
    """A row for each case and a mark for each contestant, eager among them."""
    return dots(
        results,
        theme,
        f"Memory by shape: {part.mode}",
        f"further left is better · {part.dtype}, {threads(part.threads)}",
        growths,
        lambda mib: f"{mib:g}",
        xlabel="MiB that the process grew by at most",
    ).figure


def _growths(results: Results, case: Case) -> dict[str, float]:
    """MiB for each contestant that was right."""
    return {
        contender.name: max(found.memory, _PAGE) / _MIB
        for contender in results.contenders
        if (found := results.of(contender.name, case)) is not None
        and found.verdict == "right"
        and found.memory is not None
    }

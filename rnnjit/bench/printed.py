"""A `Comparison` as a table for people and as data for programs."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from rnnjit.bench.comparison import Comparison, Result
from rnnjit.bench.timing import Timing


def print_comparison(out: Console, name: str, comparison: Comparison) -> None:
    """Print the table of one RNN, the reasons of those that declined, and who `auto` picks.

    Args:
        out: where to.
        name: path of the RNN in the saved model, "" if it is all there is.
        comparison: what was measured.
    """
    table = Table()
    table.add_column("")
    for heading in ("values\nerror", "gradients\nerror", "forward\n", "x eager\n"):
        table.add_column(heading, justify="right")
    for heading in ("forward+\nbackward", "x eager\n"):
        table.add_column(heading, justify="right")
    for result in (comparison.eager, *comparison.results):
        table.add_row(*_cells(comparison, result))
    out.print(Text(title(name, comparison), "bold"))
    out.print(table)
    for result in comparison.results:
        if result.reasons:
            out.print(Text(f"{result.name} declines: {'; '.join(result.reasons)}"))
        if result.failure:
            out.print(Text(f"{result.name} failed: {result.failure}"))
    out.print(Text(_picks(comparison)))
    out.print(
        "Errors: largest absolute difference from a float64 run. Times: median of interleaved "
        "rounds.\n"
    )


def as_data(name: str, comparison: Comparison) -> dict[str, Any]:
    """The same as plain data: times in seconds, dtypes by name."""
    problem = comparison.problem
    return {
        "name": name,
        "spec": asdict(comparison.spec),
        "call": {
            "dtype": str(problem.dtype).removeprefix("torch."),
            "device": problem.device,
            "T": problem.T,
            "B": problem.B,
            "rows": problem.N,
            "packed": problem.packed,
        },
        "auto": {"forward": comparison.auto_forward, "forward_backward": comparison.auto_both},
        "results": [_result(comparison, r) for r in (comparison.eager, *comparison.results)],
    }


def _result(comparison: Comparison, result: Result) -> dict[str, Any]:
    speedup = comparison.speedup(result)
    times = result.times
    return {
        "backend": result.name,
        "declined": list(result.reasons),
        "failure": result.failure,
        "values_error": result.values_error,
        "gradients_error": result.gradients_error,
        "forward": None if times is None else asdict(times.forward),
        "forward_backward": None if times is None else asdict(times.both),
        "times_faster": None
        if speedup is None
        else {"forward": speedup[0], "forward_backward": speedup[1]},
    }


def title(name: str, comparison: Comparison) -> str:
    """What was called, on one line: path, module, sizes."""
    spec, problem = comparison.spec, comparison.problem
    extras = [f"{spec.num_layers} layers"] if spec.num_layers > 1 else []
    extras += ["bidirectional"] if spec.bidirectional else []
    extras += [] if spec.bias else ["no bias"]
    extras += [f"dropout {spec.dropout:g}"] if spec.dropout else []
    module = ", ".join([f"RNN({spec.input_size}, {spec.hidden_size})", spec.nonlinearity, *extras])
    rows = f" packed, {problem.N} rows" if problem.packed else ""
    call = f"T={problem.T} B={problem.B}{rows}, {str(problem.dtype).removeprefix('torch.')}"
    return f"{name + ': ' if name else ''}{module}; {call}"


def _cells(comparison: Comparison, result: Result) -> list[Text]:
    if result.times is None:
        state = "declines" if result.reasons else "failed"
        return [Text(result.name), Text(state, "yellow" if result.reasons else "bold red")]
    forward, both = comparison.speedup(result) or (1.0, 1.0)
    return [
        Text(result.name),
        Text(f"{result.values_error:.1e}"),
        Text(f"{result.gradients_error:.1e}"),
        Text(duration(result.times.forward)),
        Text(f"{forward:.2f}", _colour(forward)),
        Text(duration(result.times.both)),
        Text(f"{both:.2f}", _colour(both)),
    ]


def duration(timing: Timing) -> str:
    """The median with its unit, in three digits."""
    seconds = timing.median
    for unit, scale in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds * 1e6:.3g} us"


def _colour(ratio: float) -> str:
    return "green" if ratio > 1.1 else "red" if ratio < 0.9 else ""


def _picks(comparison: Comparison) -> str:
    forward, both = comparison.auto_forward, comparison.auto_both
    if forward == both:
        return f"auto picks {forward}."
    return f"auto picks {forward} without gradients and {both} with them."

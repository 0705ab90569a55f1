"""Shows a `Comparison` as a table, in a terminal or as HTML."""

from __future__ import annotations

from html import escape

from rich.console import Console
from rich.table import Table
from rich.text import Text

from rnnjit.reference import BACKEND as EAGER
from rnnjit.runtime.timing import Timing
from rnnjit.tools.comparison import Comparison, Result

_RATIOS = (3, 5)


def print_comparison(out: Console, name: str, comparison: Comparison) -> None:
    """Print the table of one RNN, why backends declined or failed, and which one `auto` picks.

    Args:
        out: the console.
        name: path of the RNN in the model, "" for the model itself.
        comparison: the measurements.
    """
    table = Table("")
    for heading in _headings(comparison):
        table.add_column(heading.replace("+", "+ "), justify="right", max_width=9)
    for result in (comparison.eager, *comparison.results):
        if result.times is None:
            style = "yellow" if result.reasons else "bold red"
            table.add_row(Text(result.name), Text(_state(result), style))
            continue
        ratios = dict(zip(_RATIOS, comparison.speedup(result) or (), strict=False))
        cells = enumerate(_figures(comparison, result))
        table.add_row(Text(result.name), *(Text(c, _colour(ratios.get(i))) for i, c in cells))
    out.print(Text(title(name, comparison), "bold"))
    out.print(table)
    for result in comparison.results:
        if result.times is None:
            out.print(Text(f"{result.name} {_state(result)}: {_why(result)}"))
    for line in _notes(comparison):
        out.print(Text(line))
    out.print()


def as_html(name: str, comparison: Comparison) -> str:
    """The table in HTML; every text is escaped."""
    headings = _headings(comparison)
    head = "".join(f"<th>{escape(heading)}</th>" for heading in ("", *headings))
    body = []
    for result in (comparison.eager, *comparison.results):
        if result.times is None:
            said = escape(f"{_state(result)}: {_why(result)}")
            cells = f'<td colspan="{len(headings)}">{said}</td>'
        else:
            cells = "".join(f"<td>{cell}</td>" for cell in _figures(comparison, result))
        body.append(f"<tr><th>{escape(result.name)}</th>{cells}</tr>")
    caption = f"<caption><b>{escape(title(name, comparison))}</b></caption>"
    notes = f"<p>{'<br/>'.join(map(escape, _notes(comparison)))}</p>"
    table = f"<thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody>"
    return f"<table>{caption}{table}</table>{notes}"


def title(name: str, comparison: Comparison) -> str:
    """Describe the call on one line: path, module, sizes."""
    spec, problem = comparison.spec, comparison.problem
    extras = [f"{spec.num_layers} layers"] if spec.num_layers > 1 else []
    extras += ["bidirectional"] if spec.bidirectional else []
    extras += [] if spec.bias else ["no bias"]
    extras += [f"dropout {spec.dropout:g}"] if spec.dropout else []
    extras += [f"proj_size {spec.proj_size}"] if spec.proj_size else []
    layer = comparison.eager.name.removeprefix("nn.")
    if spec.cell.name.lower() != layer.lower():
        extras.insert(0, spec.cell.name)
    module = ", ".join([f"{layer}({spec.input_size}, {spec.hidden_size})", *extras])
    rows = f" packed, {problem.N} rows" if problem.packed else ""
    call = f"T={problem.T} B={problem.B}{rows}, {str(problem.dtype).removeprefix('torch.')}"
    return f"{name + ': ' if name else ''}{module}; {call}"


def _headings(comparison: Comparison) -> tuple[str, ...]:
    """The columns behind the names."""
    times = f"x {comparison.eager.name}"
    return ("values error", "gradients error", "forward", times, "forward+backward", times)


def _notes(comparison: Comparison) -> list[str]:
    """What `auto` picks, what the columns are, and which times are not to be trusted."""
    baseline = comparison.eager.name
    forward, both = (
        f"{name} (row {baseline})" if name == EAGER.name else name
        for name in (comparison.auto_forward, comparison.auto_both)
    )
    with_them = "" if forward == both else f" without gradients and {both} with them"
    notes = [
        f"auto picks {forward}{with_them}.",
        f"{baseline}: {comparison.runs}, which the backend eager runs too. Errors: largest "
        f"absolute difference from {comparison.exact}; compare them with {baseline}'s own. Times: "
        "the least of interleaved samples.",
    ]
    if disturbed := comparison.disturbed():
        notes.append(
            f"The samples of {' and '.join(disturbed)} vary much, or other programs ran during "
            "them: repeat on a quiet machine."
        )
    return notes


def _figures(comparison: Comparison, result: Result) -> tuple[str, ...]:
    """The cells below `_headings` of a result that has times."""
    assert result.times is not None
    forward, both = comparison.speedup(result) or (1.0, 1.0)
    return (
        *(f"{result.values_error:.1e}", f"{result.gradients_error:.1e}"),
        *(_duration(result.times.forward), f"{forward:.2f}"),
        *(_duration(result.times.both), f"{both:.2f}"),
    )


def _state(result: Result) -> str:
    return "declines" if result.reasons else "failed"


def _why(result: Result) -> str:
    return "; ".join(result.reasons) or result.failure


def _duration(timing: Timing) -> str:
    """The least sample with its unit, in three digits."""
    seconds = timing.least
    for unit, scale in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds * 1e6:.3g} us"


def _colour(ratio: float | None) -> str:
    if ratio is None:
        return ""
    return "green" if ratio > 1.1 else "red" if ratio < 0.9 else ""

"""`rnnjit.compare`: every backend on a model's own calls, to be looked at in a notebook."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from io import StringIO
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from rnnjit.bench.call import Call
from rnnjit.bench.comparison import Comparison, Result
from rnnjit.bench.comparison import compare as compare_backends
from rnnjit.capture import capture, weights_of
from rnnjit.inputs import initial_state, prepare
from rnnjit.observe import Seen, observe
from rnnjit.rnncell import as_sequence

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_WIDTH = 110
_HEADINGS = (
    *("", "values error", "gradients error"),
    *("forward", "x eager", "forward+backward", "x eager"),
)


@dataclass(frozen=True, repr=False)
class ComparedCalls:
    """What `compare` measured; printing it, or ending a notebook's cell with it, shows a table.

    Attributes:
        calls: for each nn.RNN that was called, by its path in the model ("" for the model itself),
            every backend on that call.
    """

    calls: Mapping[str, Comparison]

    def __repr__(self) -> str:
        # Here, since rich takes longer to import than all of rnnjit.
        from rich.console import Console

        from rnnjit.bench.printed import print_comparison

        out = Console(file=StringIO(), width=_WIDTH, highlight=False, no_color=True)
        for name, comparison in self.calls.items():
            print_comparison(out, name, comparison)
        file: Any = out.file
        return str(file.getvalue()).rstrip()

    def _repr_html_(self) -> str:
        return "".join(_table(name, comparison) for name, comparison in self.calls.items())

    def plot(self) -> Figure:
        """How many times faster than eager each backend is, a row of bars for each call.

        Raises:
            ModuleNotFoundError: matplotlib is not installed (`pip install 'rnnjit[bench]'`).
        """
        from matplotlib.figure import Figure

        from rnnjit.bench.printed import title

        figure = Figure(figsize=(8, 0.8 + 2.4 * len(self.calls)), layout="constrained")
        axes = figure.subplots(len(self.calls), squeeze=False)[:, 0]
        for ax, (name, comparison) in zip(axes, self.calls.items(), strict=True):
            speeds = {
                result.name: speed
                for result in comparison.results
                if (speed := comparison.speedup(result)) is not None
            }
            for shift, which in ((-0.2, 0), (0.2, 1)):
                bars = ax.barh(
                    [place + shift for place in range(len(speeds))],
                    [speed[which] for speed in speeds.values()],
                    height=0.38,
                    label=("forward", "forward+backward")[which],
                )
                ax.bar_label(bars, fmt="%.2fx", padding=3)
            ax.set_yticks(range(len(speeds)), list(speeds))
            ax.invert_yaxis()
            ax.axvline(1.0, color="grey", linewidth=1)
            ax.margins(x=0.12)
            ax.set_title(title(name, comparison), fontsize="medium")
            ax.set_xlabel("times faster than eager nn.RNN")
        axes[0].legend()
        return figure


def compare(module: nn.Module, *inputs: Any, rounds: int = 15) -> ComparedCalls:
    """Run the calls that `module(*inputs)` makes to its RNNs on every installed backend.

    Each call is made again, on copies of its input and weights: errors against a float64 run, and
    times forward (evaluation mode, no gradients) and forward+backward (to x, h0 and every weight),
    taken in turns. Nothing of `module` changes, torch's random generators included.

    Args:
        module: an nn.RNN or nn.RNNCell, a compiled one, or any module that contains some.
        *inputs: what the module is called with.
        rounds: samples of each time; the median counts.

    Raises:
        TypeError: `module` is no module.
        ValueError: `module(*inputs)` calls no nn.RNN, its tensors are not on the CPU, or `rounds`
            is less than 1.
        Exception: whatever `module(*inputs)` itself raises.

    Example:
        >>> found = compare(torch.nn.RNN(2, 3), torch.zeros(4, 1, 2), rounds=1)
        >>> "eager" in repr(found)
        True
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be a torch.nn.Module, got {type(module).__name__}")
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1, got {rounds}")
    calls: dict[str, tuple[nn.RNN, Call]] = {}

    def record(seen: Seen) -> None:
        calls[seen.name] = _copy(seen)

    observe(module, inputs, record)
    if not calls:
        raise ValueError("module(*inputs) calls no nn.RNN: there is nothing to compare")
    with torch.random.fork_rng(), torch.enable_grad():
        return ComparedCalls(
            {name: compare_backends(*call, rounds=rounds) for name, call in calls.items()}
        )


def _copy(seen: Seen) -> tuple[nn.RNN, Call]:
    """A call that was seen, as an nn.RNN of its own and a batched call to that."""
    spec, weights = capture(seen.module), weights_of(seen.module)
    x, hx = seen.input, seen.hx
    if isinstance(seen.module, nn.RNNCellBase):
        x, hx = as_sequence(x, hx)
    prepared = prepare(spec, weights[0], x, hx)
    if prepared.x.device.type != "cpu":
        raise ValueError(f"input must be on the CPU to be compared, got {prepared.x.device}")
    h0 = initial_state(spec, prepared)
    rnn = nn.RNN(
        *(spec.input_size, spec.hidden_size, spec.num_layers, spec.nonlinearity, spec.bias, False),
        *(spec.dropout, spec.bidirectional),
        dtype=weights[0].dtype,
    )
    with torch.no_grad():
        for own, weight in zip(weights_of(rnn), weights, strict=True):
            own.copy_(weight)
    T, B, _, sizes = prepared.rows
    # Sequences go in the order of their lengths, states with them: each call has one order.
    packed = None if sizes is None else PackedSequence(prepared.x, sizes)
    rows = prepared.x if packed is not None else prepared.x.view(T, B, spec.input_size)
    grad_y = rows.new_ones((*rows.shape[:-1], spec.num_directions * spec.hidden_size))
    return rnn, Call(_leaf(rows), _leaf(h0), grad_y, torch.ones_like(h0), T, B, packed)


def _leaf(tensor: Tensor) -> Tensor:
    return tensor.detach().clone().requires_grad_()


def _table(name: str, comparison: Comparison) -> str:
    """One call as a table in HTML; every text is escaped."""
    from rnnjit.bench.printed import title

    rows = [_row(comparison, result) for result in (comparison.eager, *comparison.results)]
    head = "".join(f"<th>{escape(heading)}</th>" for heading in _HEADINGS)
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    caption = f"<caption><b>{escape(title(name, comparison))}</b></caption>"
    return f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _row(comparison: Comparison, result: Result) -> str:
    name = f"<th>{escape(result.name)}</th>"
    if result.times is None:
        said = "; ".join(result.reasons) or result.failure
        kind = "declines" if result.reasons else "failed"
        return f'{name}<td colspan="{len(_HEADINGS) - 1}">{kind}: {escape(said)}</td>'
    from rnnjit.bench.printed import duration

    forward, both = comparison.speedup(result) or (1.0, 1.0)
    cells = (
        *(f"{result.values_error:.1e}", f"{result.gradients_error:.1e}"),
        *(duration(result.times.forward), f"{forward:.2f}"),
        *(duration(result.times.both), f"{both:.2f}"),
    )
    return name + "".join(f"<td>{cell}</td>" for cell in cells)

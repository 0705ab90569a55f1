"""`rnnjit.compare`: compares every backend on a model's own calls, for use in a notebook."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from io import StringIO
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from rnnjit.frontend.arguments import initial_states, prepare
from rnnjit.frontend.capture import is_quantized, torch_module, weights_of
from rnnjit.frontend.lowering import lower
from rnnjit.frontend.reachable import copy_sharing_parameters
from rnnjit.frontend.recurrent import Recurrent
from rnnjit.runtime.packages import absent
from rnnjit.runtime.torch_private import forget_pre_hooks
from rnnjit.tools.call import Call, leaf
from rnnjit.tools.comparison import Comparison, compare_call, steps
from rnnjit.tools.observe import Seen, observe
from rnnjit.tools.progress import Progress
from rnnjit.tools.selection import selected

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_WIDTH = 110
#: Why a quantized module is not compared.
_INT8 = (
    "module must have float matrices to be compared with eager, got int8 ones: compare the module "
    "that was quantized"
)


@dataclass(frozen=True, repr=False)
class ComparedCalls:
    """The measurements of `compare`; printing it, or displaying it in a notebook, shows a table.

    Attributes:
        calls: by the path of each recurrent layer or cell in the model ("" for the model itself),
            the comparison of the backends on its first call.
    """

    calls: Mapping[str, Comparison]

    def __repr__(self) -> str:
        # Imported here, since rich takes longer to import than all of rnnjit.
        from rich.console import Console

        from rnnjit.tools.comparison_tables import print_comparison

        out = Console(file=StringIO(), width=_WIDTH, highlight=False, no_color=True)
        for name, comparison in self.calls.items():
            print_comparison(out, name, comparison)
        file: Any = out.file
        return str(file.getvalue()).rstrip()

    def _repr_html_(self) -> str:
        from rnnjit.tools.comparison_tables import as_html

        return "".join(as_html(name, comparison) for name, comparison in self.calls.items())

    def plot(self) -> Figure:
        """Plot how many times faster than eager each backend is, one bar chart for each call.

        Raises:
            ModuleNotFoundError: matplotlib is not installed; the message says what to do.
        """
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise absent("matplotlib", "bench", "a plot") from error

        from rnnjit.tools.comparison_tables import title

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
            ax.set_xlabel(f"times faster than eager {comparison.eager.name}")
        axes[0].legend()
        return figure


def compare(
    module: nn.Module,
    *inputs: Any,
    rounds: int = 15,
    backends: Iterable[str] | None = None,
    **named: Any,
) -> ComparedCalls:
    """Run the calls that `module(*inputs)` makes to its recurrent layers on the installed backends.

    Each call is repeated on copies of its input and weights. The results are the errors against a
    float64 run and the interleaved times of forward (evaluation mode, no gradients) and
    forward+backward (to x, hx and every weight), beside those of PyTorch's own layer, which is also
    what the eager backend runs. For an `rnnjit.Recurrent` that is the forward of its cell, step by
    step; if it draws random numbers in evaluation mode or does not run in float64, the errors are
    differences from its own run. Neither `module` nor torch's random generators change.

    Backends that compile for long come last. Progress is shown on stderr as by `rnnjit.tune`.

    Args:
        module: an nn.RNN, nn.LSTM, nn.GRU or one of their cells, an `rnnjit.Recurrent`, a compiled
            one, or any module that contains some. A cell is compared as one step of its layer.
        *inputs: the arguments for `module`.
        rounds: samples of each time, of which the least is used.
        backends: names of the backends to compare with PyTorch, or None for all.
        **named: its keyword arguments, such as `reset`: with resets, what is measured of a layer of
            torch is the packed batch of the segments between them.

    Raises:
        CellError: a cell in a `Recurrent` computes what no backend could.
        TypeError: `module` is not a module, or `backends` is no list of names.
        ValueError: `module(*inputs)` calls no such module, its tensors are not on the CPU, `rounds`
            is less than 1, or `backends` is empty or names one that is not installed.
        Exception: the error of `module(*inputs)` itself.

    Example:
        >>> found = compare(torch.nn.RNN(2, 3), torch.zeros(4, 1, 2), rounds=1, backends=["numba"])
        >>> len(found.calls[""].results)
        1
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be a torch.nn.Module, got {type(module).__name__}")
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1, got {rounds}")
    names = list(selected(backends))
    calls: dict[str, tuple[nn.Module, Call]] = {}

    def record(seen: Seen) -> None:
        copied = _copy_recurrent if isinstance(seen.module, Recurrent) else _copy
        calls[seen.name] = copied(seen)

    observe(module, inputs, record, named)
    if not calls:
        raise ValueError(
            "module(*inputs) calls no nn.RNN, nn.LSTM or nn.GRU, nor a cell of one, that an "
            "installed backend compiles, and no rnnjit.Recurrent: there is nothing to compare"
        )
    with torch.random.fork_rng(), torch.enable_grad(), Progress("rnnjit.compare") as progress:
        progress.expect(len(calls) * steps(rounds, names))
        return ComparedCalls(
            {
                name: compare_call(*call, rounds=rounds, names=names, progress=progress)
                for name, call in calls.items()
            }
        )


def _copy_recurrent(seen: Seen) -> tuple[nn.Module, Call]:
    """A copy of an observed `Recurrent` that shares its Parameters, and of its call."""
    if is_quantized(seen.module):
        raise ValueError(_INT8)
    module: Any = copy_sharing_parameters(seen.module)
    forget_pre_hooks(module)
    for name in {name for names in module._store.names for name in names.values()}:
        if isinstance(weight := vars(module).get(name), Tensor):
            # A pre-hook computed it, as torch.nn.utils.weight_norm does; its graph is used up.
            delattr(module, name)
            module.register_parameter(name, nn.Parameter(weight.detach().clone()))
    spec = module._outer_spec()
    prepared = prepare(spec, module._first_weight(), seen.input, seen.hx)
    _check_device(prepared.x)
    rows, hx = prepared.rows, initial_states(spec, prepared)
    packed = seen.input if isinstance(seen.input, PackedSequence) else None
    data = seen.input.data if isinstance(seen.input, PackedSequence) else seen.input
    if seen.hx is not None:
        hx = (seen.hx,) if isinstance(seen.hx, Tensor) else tuple(seen.hx)
    elif packed is None and data.dim() == 2:
        hx = tuple([state.squeeze(1) for state in hx])
    grad_y = data.new_ones((*data.shape[:-1], spec.num_directions * spec.hidden_size))
    hx = tuple(map(leaf, hx))
    given = {"reset": seen.reset, "reset_to": seen.reset_to, "return_states": seen.return_states}
    options = {name: value for name, value in given.items() if value is not None}
    return module, Call(
        *(leaf(data), hx, grad_y, tuple(map(torch.ones_like, hx)), rows.T, rows.B, packed, options)
    )


def _check_device(x: Tensor) -> None:
    if x.device.type != "cpu":
        raise ValueError(f"input must be on the CPU to be compared, got {x.device}")


def _copy(seen: Seen) -> tuple[nn.Module, Call]:
    """Rebuild an observed call as a new torch layer and a batched call to it."""
    call = lower(seen.module, seen.input, seen.hx)
    _check_device(call.x)
    if call.spec.quantized:
        raise ValueError(_INT8)
    spec = replace(call.spec, batch_first=False)
    rnn = torch_module(spec, call.weights[0].dtype)
    with torch.no_grad():
        for own, weight in zip(weights_of(rnn), call.weights, strict=True):
            own.copy_(weight)
    T, B, _, sizes = call.rows
    # The rows and states are sorted by length already, so this PackedSequence needs no indices.
    packed = None if sizes is None else PackedSequence(call.x, sizes)
    rows = call.x if packed is not None else call.x.view(T, B, spec.input_size)
    features = spec.num_directions * (spec.proj_size or spec.hidden_size)
    grad_y = rows.new_ones((*rows.shape[:-1], features))
    hx = tuple(map(leaf, call.hx))
    return rnn, Call(leaf(rows), hx, grad_y, tuple(map(torch.ones_like, hx)), T, B, packed)

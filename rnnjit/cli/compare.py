"""`rnnjit compare`: compares every backend with eager PyTorch."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from torch import nn

from rnnjit.cli import models
from rnnjit.cli.output import console, say, write_json
from rnnjit.cli.parser import (
    Commands,
    Parser,
    UsageError,
    comma_separated,
    first_line,
    output_file,
    positive,
    probability,
    seed,
)
from rnnjit.frontend.capture import CELL_OF_NONLINEARITY, capture, torch_module
from rnnjit.ir import GRU, LSTM, RNN_TANH, CellSpec
from rnnjit.spec import RNNSpec
from rnnjit.tools.call import random_call
from rnnjit.tools.comparison import Comparison, Result, compare_call, steps
from rnnjit.tools.comparison_tables import print_comparison
from rnnjit.tools.environment import environment
from rnnjit.tools.progress import Progress
from rnnjit.tools.selection import selected

_DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
_CELLS = {"rnn": RNN_TANH, "lstm": LSTM, "gru": GRU}
_CONFIGURATION = {
    "input_size": 64,
    "hidden_size": 128,
    "num_layers": 1,
    "bias": True,
    "batch_first": False,
    "dropout": 0.0,
    "bidirectional": False,
    "proj_size": 0,
}


def add(commands: Commands[Parser]) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "compare",
        help="compare the errors and times of every backend with eager PyTorch",
        description="Run one nn.RNN, nn.LSTM or nn.GRU, or every one of a saved model, through "
        "eager PyTorch and every backend, on random input: largest errors against a float64 run, "
        "times, and the backend that auto picks.",
    )
    _add_module(parser)
    call = parser.add_argument_group("the call")
    call.add_argument("--steps", "--T", type=positive, default=100, metavar="T", help="time steps")
    call.add_argument("--batch", "--B", type=positive, default=16, metavar="B", help="sequences")
    call.add_argument("--packed", action="store_true", help="sequences of unequal length, packed")
    call.add_argument("--dtype", choices=_DTYPES, help="default: float32, or the saved model's")
    call.add_argument("--seed", type=seed, default=0, help="of the random input and weights")
    measure = parser.add_argument_group("the measurement")
    measure.add_argument("--threads", type=positive, metavar="N", help="default: PyTorch's own")
    measure.add_argument(
        "--rounds", type=positive, default=15, metavar="N", help="samples of each time"
    )
    measure.add_argument(
        "--backends",
        type=comma_separated,
        metavar="A,B",
        help="compare only these with eager PyTorch",
    )
    measure.add_argument(
        "--json", type=output_file, metavar="FILE", help="also write the results; - for stdout"
    )
    parser.set_defaults(run=run)


def _add_module(parser: Parser) -> None:
    """Flags of the configuration; None if not given, since a saved model has its own values."""
    group = parser.add_argument_group("a module drawn at random")
    for flag, short in (("--input-size", "--I"), ("--hidden-size", "--H"), ("--num-layers", "--L")):
        default = _CONFIGURATION[flag[2:].replace("-", "_")]
        group.add_argument(
            flag, short, type=positive, metavar=short[2:], help=f"default: {default}"
        )
    group.add_argument("--cell", choices=_CELLS, help="the kind of layer; default: rnn")
    group.add_argument(
        "--nonlinearity", choices=CELL_OF_NONLINEARITY, help="of nn.RNN; default: tanh"
    )
    group.add_argument("--proj-size", "--P", type=positive, metavar="P", help="of nn.LSTM")
    group.add_argument("--dropout", type=probability, metavar="P", help="between layers")
    for flag, help_ in (
        ("--batch-first", "input and output are [B, T, ...]"),
        ("--bidirectional", "every layer also runs backwards in time"),
    ):
        group.add_argument(flag, action="store_true", default=None, help=help_)
    group.add_argument(
        "--no-bias", dest="bias", action="store_false", default=None, help="weights only"
    )
    group = parser.add_argument_group("or a saved one")
    group.add_argument(
        "--model", metavar="FILE", help="what torch.save wrote: a module or a state_dict"
    )
    group.add_argument(
        "--trust",
        action="store_true",
        help="import the classes that the file names, even if they are not PyTorch's",
    )


def run(arguments: Namespace) -> int:
    """Compare, print a table for each RNN, and write the JSON file."""
    try:
        selected(arguments.backends)
    except ValueError as error:
        raise UsageError(str(error)) from None
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    try:
        compared = _compare_all(_modules(arguments), arguments)
    except (RuntimeError, MemoryError) as error:
        # A failure of a backend is part of the results, so this is a size that does not fit memory.
        raise UsageError(f"this call cannot be made: {first_line(error)}") from None
    if arguments.json != "-":
        out = console()
        for name, comparison in compared.items():
            print_comparison(out, name, comparison)
    if arguments.json is not None:
        modules = [_as_data(name, comparison) for name, comparison in compared.items()]
        data = {"environment": environment().as_dict(), "modules": modules}
        write_json(data, arguments.json)
    return int(any(result.failure for c in compared.values() for result in c.results))


def _modules(arguments: Namespace) -> dict[str, nn.RNNBase]:
    """The modules to compare, by name: from the file, or a random one from the flags."""
    given = {key: getattr(arguments, key) for key in _CONFIGURATION}
    given = {key: value for key, value in given.items() if value is not None}
    if arguments.model is not None:
        if given or arguments.cell is not None:
            flags = ", ".join(map(_flag, [*given, *([] if arguments.cell is None else ["cell"])]))
            raise UsageError(f"{flags} cannot be given with --model, which has its own values")
        return models.read(
            arguments.model,
            nonlinearity=arguments.nonlinearity,
            trust=arguments.trust,
            say=partial(say, "compare"),
        )
    if arguments.trust:
        raise UsageError("--trust works only with --model")
    spec = RNNSpec(**_CONFIGURATION | given, cell=_cell(arguments))
    if spec.dropout and spec.num_layers == 1:
        raise UsageError("--dropout acts between layers: it takes --num-layers 2 or more")
    torch.manual_seed(arguments.seed)
    try:
        return {"": torch_module(spec, torch.float32)}
    except (RuntimeError, MemoryError, ValueError, TypeError) as error:
        raise UsageError(f"this module cannot be made: {first_line(error)}") from None


def _cell(arguments: Namespace) -> CellSpec:
    """The cell that `--cell` and `--nonlinearity` name."""
    cell = _CELLS[arguments.cell or "rnn"]
    if arguments.nonlinearity is None:
        return cell
    if cell not in CELL_OF_NONLINEARITY.values():
        raise UsageError(f"--nonlinearity is for nn.RNN: --cell {arguments.cell} has no choice")
    return CELL_OF_NONLINEARITY[arguments.nonlinearity]


def _compare_all(rnns: dict[str, nn.RNNBase], arguments: Namespace) -> dict[str, Comparison]:
    compared = {}
    with Progress("rnnjit compare", option="--backends") as progress:
        progress.expect(len(rnns) * steps(arguments.rounds, arguments.backends))
        for name, rnn in rnns.items():
            dtype = _DTYPES.get(arguments.dtype, next(rnn.parameters()).dtype)
            call = random_call(
                capture(rnn),
                arguments.steps,
                arguments.batch,
                packed=arguments.packed,
                dtype=dtype,
                seed=arguments.seed,
            )
            compared[name] = compare_call(
                rnn.to(dtype),
                call,
                rounds=arguments.rounds,
                names=arguments.backends,
                progress=progress,
            )
    return compared


def _as_data(name: str, comparison: Comparison) -> dict[str, Any]:
    """Convert a comparison to plain data: times in seconds, cells and dtypes by name."""
    spec, problem = comparison.spec, comparison.problem
    fields = {key: getattr(spec, key) for key in spec.__dataclass_fields__}
    return {
        "name": name,
        "spec": fields | {"cell": spec.cell.name},
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
    found = {
        "backend": result.name,
        "declined": list(result.reasons),
        "failure": result.failure,
        "values_error": result.values_error,
        "gradients_error": result.gradients_error,
    }
    passes = ("forward", "forward_backward")
    if result.times is None:
        return found | dict.fromkeys((*passes, "times_faster"))
    times = dict(zip(passes, map(asdict, result.times), strict=True))
    speedup = comparison.speedup(result)
    return found | times | {"times_faster": speedup and dict(zip(passes, speedup, strict=True))}


def _flag(key: str) -> str:
    return "--no-bias" if key == "bias" else f"--{key.replace('_', '-')}"

"""`rnnjit bench --preset models`: compares and times whole models, eager against compiled."""

from __future__ import annotations

import shlex
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from rnnjit.cli.output import console, progress, say, write_text
from rnnjit.cli.parser import Parser, UsageError, comma_separated, positive

if TYPE_CHECKING:
    from rnnjit.bench.models.records import ModelReport

NAME = "models"
ABOUT = "whole models of other people, eager against compiled, each in a process of its own"
_FOLDER = "benchmarks/models"
_INTERRUPTED = 130
#: The options of this preset alone, and those that are not for it.
_OWN = ("models", "only", "timeout")
_OTHERS = ("contestants", "cell", "dtype", "csv", "html", "against", "fail_slower")


def add_options(parser: Parser) -> None:
    """Add the options of this preset to the parser of `rnnjit bench`."""
    group = parser.add_argument_group(f"--preset {NAME}")
    group.add_argument(
        "--models",
        metavar="PATH",
        help=f"a folder of files that describe a model each, or one file; default: {_FOLDER}",
    )
    group.add_argument(
        "--only", type=comma_separated, metavar="A,B", help="only the files with these names"
    )
    group.add_argument(
        "--timeout",
        type=positive,
        metavar="S",
        help="most seconds for one pass of a model, default 600",
    )


def check_options(arguments: Namespace) -> None:
    """Check that the options belong to the preset.

    Raises:
        UsageError: one does not.
    """
    chosen = arguments.preset == NAME
    for name in _OTHERS if chosen else _OWN:
        if getattr(arguments, name) is not None:
            option = "--" + name.replace("_", "-")
            fix = "leave it out" if chosen else f"add --preset {NAME}"
            where = "does not work with" if chosen else "works only with"
            raise UsageError(f"{option} {where} --preset {NAME}: {fix}")
    if chosen and arguments.threads is not None and len(arguments.threads) > 1:
        raise UsageError(f"--threads takes one number with --preset {NAME}")


def run(arguments: Namespace) -> int:
    """Measure, write the file, print the table.

    Returns:
        The exit status: 1 if a model is wrong or failed, 130 if the report is incomplete.

    Raises:
        UsageError: there is no such file or folder, or no such model.
    """
    from rnnjit.bench.records import encode
    from rnnjit.cli.model_tables import print_models

    report = _measure(arguments)
    if arguments.json is not None:
        write_text(encode(report).decode(), arguments.json)
    if arguments.json != "-":
        print_models(console(), report)
    if not report.complete:
        return _INTERRUPTED
    return int(any(row.verdict in ("wrong", "failed") for row in report.rows))


def _measure(arguments: Namespace) -> ModelReport:
    import torch

    from rnnjit.bench.models.run import QUICK_ROUNDS, ROUNDS, TIMEOUT, run_models

    files = _files(arguments)
    rounds = arguments.rounds or (QUICK_ROUNDS if arguments.quick else ROUNDS)
    (threads,) = arguments.threads or (torch.get_num_threads(),)
    say("bench", f"{len(files)} models, {rounds} rounds each")
    with progress() as bar:
        task = bar.add_task("", total=len(files))

        def begin(name: str, done: int) -> None:
            bar.update(task, description=name, completed=done, refresh=True)

        return run_models(
            files,
            threads=threads,
            rounds=rounds,
            timeout=arguments.timeout or TIMEOUT,
            command=_command(arguments),
            progress=begin,
        )


def _files(arguments: Namespace) -> list[Path]:
    from rnnjit.bench.models.run import model_files

    try:
        files = {path.stem: path for path in model_files(Path(arguments.models or _FOLDER))}
    except OSError as error:
        fix = "name a folder of files that describe models, or one file"
        raise UsageError(f"--models: {error}: {fix}") from None
    names = list(files) if arguments.only is None else arguments.only
    unknown = [name for name in names if name not in files]
    if unknown or not names:
        wrong = f"there is no model {unknown[0]!r}" if unknown else "it names no model"
        raise UsageError(f"--only: {wrong}: choose from {', '.join(files)}")
    return [path for name, path in files.items() if name in names]


def _command(arguments: Namespace) -> str:
    """The command that repeats this measurement."""
    words = ["rnnjit", "bench", "--preset", NAME]
    if arguments.models is not None:
        words += ["--models", arguments.models]
    for option in ("only", "threads"):
        if (chosen := getattr(arguments, option)) is not None:
            words += [f"--{option}", ",".join(map(str, chosen))]
    if arguments.quick:
        words.append("--quick")
    for option in ("rounds", "timeout"):
        if (chosen := getattr(arguments, option)) is not None:
            words += [f"--{option}", str(chosen)]
    return shlex.join(words)

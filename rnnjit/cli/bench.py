"""`rnnjit bench`: checks and times every installed backend and peer, interleaved."""

from __future__ import annotations

import shlex
from argparse import ArgumentTypeError, Namespace
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import structs

from rnnjit.bench.kinds import KINDS
from rnnjit.bench.presets import PRESETS, QUICK_PLAN, shortened
from rnnjit.cli import bench_models
from rnnjit.cli.output import console, say, timed_progress, write_text
from rnnjit.cli.parser import (
    Commands,
    Parser,
    UsageError,
    comma_separated,
    first_line,
    output_file,
    positive,
)

if TYPE_CHECKING:
    from rnnjit.bench.contestants.base import Contestant
    from rnnjit.bench.plan import Plan
    from rnnjit.bench.records import Case, CellName, Report

_INTERRUPTED = 130
_DTYPES = ("float32", "float64", "bfloat16", "float16", "int8")
#: Of these no case that trains is measured.
_INFERENCE = ("float16", "int8")


def add(commands: Commands[Parser]) -> None:
    """Add the command to the parser."""
    about = {name: preset.about for name, preset in PRESETS.items()}
    about[bench_models.NAME] = bench_models.ABOUT
    presets = "; ".join(f"{name}: {words}" for name, words in about.items())
    parser = commands.add_parser(
        "bench",
        help="time every backend and every installed peer against eager PyTorch",
        description="Time eager PyTorch, every backend, and onnxruntime, OpenVINO, JAX and "
        "torch.compile where they are installed (pip install '.[bench]' in a clone): each in a "
        "process of its own, on as many threads, interleaved. Wrong results get no time.",
    )
    parser.add_argument("--preset", choices=about, default="quick", help=presets)
    parser.add_argument(
        "--contestants",
        type=comma_separated,
        metavar="A,B",
        help="only these and the baseline of the ratios: eager, in int8 torch-int8 if it takes "
        "every case, else eager-float32. "
        "auto is the backend that rnnjit.compile chooses; package.module:CLASS is one of your own",
    )
    parser.add_argument(
        "--cell",
        type=_cells,
        metavar="A,B",
        help=f"kinds of layers, of {', '.join(KINDS)}; default: the preset's, mostly rnn",
    )
    parser.add_argument(
        "--quick", action="store_true", help="small and short cases, few samples: a smoke test"
    )
    parser.add_argument("--dtype", choices=_DTYPES, help="of the preset's float32 cases")
    parser.add_argument("--threads", type=_threads, metavar="N,M", help="default: the preset's")
    parser.add_argument("--rounds", type=positive, metavar="N", help="samples of each time")
    for kind, what in (("json", "all; - for stdout"), ("csv", "a table"), ("html", "a page")):
        parser.add_argument(f"--{kind}", type=output_file, metavar="FILE", help=f"write {what}")
    parser.add_argument("--against", metavar="OLD.json", help="show the changes since that run")
    parser.add_argument(
        "--fail-slower",
        type=_factor,
        metavar="X",
        help="exit with 1 if a backend's ratio to eager is X times lower than in --against, "
        "or it no longer has a time",
    )
    bench_models.add_options(parser)
    parser.set_defaults(run=run)


def run(arguments: Namespace) -> int:
    """Measure, write the files, print the tables."""
    bench_models.check_options(arguments)
    if arguments.preset == bench_models.NAME:
        return bench_models.run(arguments)
    old = _old(arguments)
    _check_outputs(arguments)
    report = _measure(arguments)
    _write(report, arguments)
    return conclude(report, old, arguments)


def conclude(report: Report, old: Report | None, arguments: Namespace) -> int:
    """Print the tables.

    Args:
        report: the measurements.
        old: the report to compare with, or None.
        arguments: the arguments of the command; it uses `json`, `against` and `fail_slower`.

    Returns:
        The exit status: 1 if a backend of rnnjit is wrong, failed, or is slower than allowed, 130
        if the report is incomplete.

    Raises:
        UsageError: `fail_slower` is given, but the reports have no backend and case in common,
            or ratios to different baselines.
    """
    from rnnjit.bench.report import regression
    from rnnjit.bench.report.results import Results
    from rnnjit.cli import bench_tables

    changes = [] if old is None else regression.changes(old, report)
    slower = regression.slower(changes, arguments.fail_slower or float("inf"))
    if arguments.json != "-":
        out = console()
        bench_tables.print_report(out, report)
        if old is not None:
            bench_tables.print_changes(out, old, report, changes, slower)
    if not report.complete:
        return _INTERRUPTED
    if arguments.fail_slower is not None and not changes:
        baselines = [] if old is None else [Results(each).baseline for each in (old, report)]
        if len(set(baselines)) > 1:
            before, now = baselines
            raise UsageError(
                f"{arguments.against!r} has ratios to {before}, and this run to {now}: "
                "compare runs of the same baseline"
            )
        raise UsageError(f"{arguments.against!r} has no backend and case in common with this run")
    backends = {each.name for each in report.contestants if each.kind == "backend"}
    broken = any(
        each.verdict in ("wrong", "failed") and each.contestant in backends
        for each in report.measurements
    )
    return int(broken or bool(slower))


def _measure(arguments: Namespace) -> Report:
    import torch

    preset = PRESETS[arguments.preset]
    threads = arguments.threads or preset.threads(torch.get_num_threads())
    plan, (cases, left) = preset.plan, _cases(arguments, threads)
    chosen = _chosen(cases, arguments.contestants, preset.contestants)
    if left:
        say("bench", f"{arguments.dtype} is for inference: cases that train are left out ({left})")
    if arguments.quick:
        plan, cases = QUICK_PLAN, shortened(cases)
    if arguments.rounds is not None:
        plan = replace(plan, rounds=arguments.rounds, starts=arguments.rounds)
    return measure(
        arguments.preset,
        cases,
        chosen,
        plan,
        threads=threads,
        quick=arguments.quick or arguments.preset == "quick",
        command=_command(arguments),
    )


def _cases(arguments: Namespace, threads: Sequence[int]) -> tuple[tuple[Case, ...], int]:
    """The preset's cases, in the dtype that the user named, and how many it leaves out.

    Raises:
        UsageError: no case is float32, or the dtype is for inference, and all cases train.
    """
    cases, dtype = PRESETS[arguments.preset].cases(threads, arguments.cell), arguments.dtype
    if dtype is None:
        return cases, 0
    single = [each for each in cases if each.dtype in ("float32", dtype)]
    if not single:
        raise UsageError(
            f"--dtype {dtype} is of float32 cases, and --preset {arguments.preset} has none: "
            "leave it out, or choose another preset"
        )
    found = tuple([structs.replace(each, dtype=dtype) for each in single])
    if dtype not in _INFERENCE:
        return found, 0
    inferring = tuple([each for each in found if not each.trains])
    if not inferring:
        raise UsageError(
            f"--dtype {dtype} is for inference, and all cases of --preset {arguments.preset} "
            "train: choose another preset, or float32 or bfloat16"
        )
    return inferring, len(found) - len(inferring)


def measure(
    name: str,
    cases: Sequence[Case],
    contestants: Sequence[Contestant],
    plan: Plan,
    *,
    threads: Sequence[int],
    quick: bool = False,
    command: str = "",
) -> Report:
    """Measure the machine and cases, with a progress bar.

    Args:
        name: name of the preset in the report.
        cases: the cases to measure.
        contestants: the contestants; absent ones get no times.
        plan: how to measure.
        threads: the numbers of threads for which to measure the machine's peaks.
        quick: whether rough peaks suffice.
        command: the command line to record in the report.
    """
    from rnnjit.bench.machine import measure_machine
    from rnnjit.bench.run import present
    from rnnjit.bench.run import run as run_cases

    taking = present(contestants)
    expected = plan.seconds(cases, taking)
    say("bench", f"{len(cases)} cases, {len(taking)} contestants, {_about(expected)}")
    with timed_progress() as bar:
        task = bar.add_task("the machine", total=expected)
        machine = measure_machine(threads, quick=quick)

        def progress(what: str, seconds: float) -> None:
            # Drawn only between two samples, so that drawing does not disturb them.
            bar.update(task, description=what, advance=seconds, refresh=True)

        return run_cases(name, cases, contestants, plan, machine, progress, command)


def _command(arguments: Namespace) -> str:
    """The command that repeats this measurement."""
    words = ["rnnjit", "bench", "--preset", arguments.preset]
    for option in ("cell", "contestants", "threads"):
        if (chosen := getattr(arguments, option)) is not None:
            words += [f"--{option}", ",".join(map(str, chosen))]
    if arguments.dtype is not None:
        words += ["--dtype", arguments.dtype]
    if arguments.quick:
        words.append("--quick")
    if arguments.rounds is not None:
        words += ["--rounds", str(arguments.rounds)]
    return shlex.join(words)


def _chosen(
    cases: Sequence[Case], named: Sequence[str] | None, preset: Sequence[str] | None
) -> list[Contestant]:
    """The baseline and those that are named, in the order of all contestants.

    Args:
        cases: the cases; those of int8 have contestants of their own.
        named: the names that the user chose, or None.
        preset: those of the preset for other dtypes than int8, or None for all.
    """
    from rnnjit.bench.contestants import contestants, find, of_int8

    if any(case.dtype == "int8" for case in cases):
        offered, names = of_int8(cases), named
        spare = [find("eager-float32"), *(c for c in contestants() if c.kind != "baseline")]
    else:
        offered, names, spare = contestants(), preset if named is None else named, []
    if names is None:
        return offered
    known: dict[str, Contestant] = {}
    for each in (*offered, find("auto"), *spare):
        known.setdefault(each.name, each)
    unknown = [name for name in names if name not in known and ":" not in name]
    if unknown:
        raise UsageError(f"there is no contestant {unknown[0]!r}: choose from {', '.join(known)}")
    chosen = [each for name, each in known.items() if name in names or each.kind == "baseline"]
    for name in names:
        if ":" in name:
            try:
                chosen.append(find(name))
            except (ImportError, AttributeError, TypeError) as error:
                raise UsageError(f"{name!r} is no contestant: {first_line(error)}") from None
    return chosen


def _old(arguments: Namespace) -> Report | None:
    """The report to compare with."""
    from rnnjit.bench.records import read

    if arguments.against is None:
        if arguments.fail_slower is not None:
            raise UsageError("--fail-slower works only with --against")
        return None
    try:
        return read(Path(arguments.against))
    except OSError as error:
        raise UsageError(f"{arguments.against!r} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise UsageError(f"{arguments.against!r} cannot be used: {first_line(error)}") from None


def _check_outputs(arguments: Namespace) -> None:
    """Check before the measurement that the output files can be written."""
    for kind in ("csv", "html"):
        if getattr(arguments, kind) == "-":
            raise UsageError(f"--{kind} takes a file: only --json goes to standard output")
    if arguments.html is not None:
        try:
            import rnnjit.bench.report.html  # noqa: F401 - needs the packages of the extra
        except ImportError as error:
            raise UsageError(f"--html: {first_line(error)}") from None


def _write(report: Report, arguments: Namespace) -> None:
    from rnnjit.bench.records import encode
    from rnnjit.bench.report.rows import write_csv

    if arguments.json is not None:
        write_text(encode(report).decode(), arguments.json)
    try:
        if arguments.csv is not None:
            write_csv(report, arguments.csv)
        if arguments.html is not None:
            from rnnjit.bench.report.html import write_html

            write_html(report, arguments.html)
    except OSError as error:
        raise UsageError(f"{error.filename!r} cannot be written: {error.strerror}") from None


def _cells(text: str) -> tuple[CellName, ...]:
    names = comma_separated(text)
    unknown = [name for name in names if name not in KINDS]
    if unknown or not names:
        got = unknown[0] if unknown else text
        raise ArgumentTypeError(f"expected cells of {', '.join(KINDS)}, got {got!r}")
    return tuple(name for name in KINDS if name in names)


def _threads(text: str) -> tuple[int, ...]:
    return tuple(sorted({positive(part) for part in text.split(",")}))


def _factor(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 1.0 <= number < float("inf"):
        raise ArgumentTypeError(f"expected a number from 1, such as 1.15, got {text!r}")
    return number


def _about(seconds: float) -> str:
    return f"about {seconds:.0f} s" if seconds < 100 else f"about {seconds / 60:.0f} minutes"

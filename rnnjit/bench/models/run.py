"""Runs the models of a folder, each in a process of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from pathlib import Path

import msgspec
from msgspec.structs import replace

import rnnjit
from rnnjit.bench.models.records import About, ModelReport, ModelRow, What
from rnnjit.bench.models.worker import Answer, Finished, Row, Started
from rnnjit.bench.process import Child, WorkerError
from rnnjit.bench.records import Machine
from rnnjit.bench.run import commit
from rnnjit.runtime.host import processor, system, usable_cpus

#: Rounds of a run, and of a quick one.
ROUNDS, QUICK_ROUNDS = 9, 3
#: Most seconds that one pass of a model may take, to compare and to time.
TIMEOUT = 600.0
_WORKER = ("-m", "rnnjit.bench.models.worker")


def model_files(place: Path) -> list[Path]:
    """The files that describe models: `place` itself, or those of the folder, sorted by name.

    Files whose names begin with "_" are left out: models may share what stands in them.

    Raises:
        OSError: there is no such file or folder, or no file in it.
    """
    if place.is_file():
        return [place]
    found = sorted(path for path in place.glob("*.py") if not path.name.startswith("_"))
    if not found:
        what = "holds no .py file" if place.is_dir() else "does not exist"
        raise OSError(f"{str(place)!r} {what}")
    return found


def run_models(
    files: Sequence[Path],
    *,
    threads: int,
    rounds: int = ROUNDS,
    timeout: float = TIMEOUT,
    command: str = "",
    progress: Callable[[str, int], object] = lambda name, done: None,
) -> ModelReport:
    """Measure models, one after the other, each in a process of its own.

    Ctrl-C (KeyboardInterrupt) ends it; the report then holds the rows so far.

    Args:
        files: the files that describe them.
        threads: the number of threads of each process.
        rounds: interleaved samples of each time; 0 only compares the results.
        timeout: most seconds that a pass may take; one that takes longer has failed.
        command: the command line to record in the report.
        progress: called before each file, with its name and the number of those that are done.
    """
    rows: list[ModelRow] = []
    here, complete = commit(Path(rnnjit.__file__).parent), True
    try:
        for done, path in enumerate(files):
            progress(path.stem, done)
            created = datetime.now().astimezone().isoformat(timespec="seconds")
            for row in _rows(path, threads, rounds, timeout):
                rows.append(replace(row, created=created, commit=here))
    except KeyboardInterrupt:
        complete = False
    machine = Machine(cpu=processor()[0], system=system(), cpus=usable_cpus(), isa="")
    return ModelReport(
        machine=machine, threads=threads, rows=tuple(rows), complete=complete, command=command
    )


def _rows(path: Path, threads: int, rounds: int, timeout: float) -> Iterable[ModelRow]:
    """The results of one model, as they come; what its process owes when it ends has failed."""
    about, owed = About(model=path.stem, name=path.stem), list[What]()
    child = Child([*_WORKER, str(path.absolute()), str(rounds)], threads)
    reason, started = "", False
    try:
        while True:
            answer = _decode(child.receive(timeout))
            if isinstance(answer, Started):
                about, owed, started = answer.about, [*answer.passes], True
            elif isinstance(answer, Row):
                if answer.row.what is not None:
                    owed.remove(answer.row.what)
                yield answer.row
            elif isinstance(answer, Finished):
                reason = answer.error
                break
    except WorkerError as error:
        reason = str(error)
    finally:
        child.kill()
    for what in owed if started else [None]:
        if reason:
            yield ModelRow(about=about, what=what, verdict="failed", reason=reason)


def _decode(line: bytes) -> Answer:
    try:
        answer: Answer = msgspec.json.decode(line, type=Answer)
    except msgspec.DecodeError:
        raise WorkerError(f"an invalid answer: {line[:80]!r}") from None
    return answer

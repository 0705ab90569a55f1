"""The process of a model: measures it, and answers in lines of JSON.

It answers with `Started`, then a `Row` for each pass, then `Finished`. A pass that raises gives a
row that says so.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from rnnjit.bench.models.case import ModelCase, load_case
from rnnjit.bench.models.records import About, ModelRow, Quantiles, What
from rnnjit.bench.models.requirements import installed, lacking, parse
from rnnjit.bench.models.trial import measure_pass, passes_of
from rnnjit.errors import described
from rnnjit.runtime.host import PACKAGES, version_of


class Message(msgspec.Struct, frozen=True, tag=True):
    """An answer."""


class Started(Message, frozen=True):
    """The model was read.

    Attributes:
        about: the model.
        passes: what will be measured.
    """

    about: About
    passes: tuple[What, ...]


class Row(Message, frozen=True):
    """A pass was measured."""

    row: ModelRow


class Finished(Message, frozen=True):
    """Everything was measured.

    Attributes:
        error: why the model could not be read, "" if it could.
    """

    error: str = ""


Answer = Started | Row | Finished


def answers(path: Path, rounds: int) -> Iterator[Answer]:
    """Read a model, measure its passes, and yield the answers.

    Args:
        path: the file that describes the model.
        rounds: as in `rnnjit.bench.models.trial.measure`.
    """
    try:
        case = load_case(path)
        about, missing = about_of(path, case), lacking(case.requires)
    except Exception as error:  # noqa: BLE001 - a user's file may raise anything
        yield Finished(described(error))
        return
    yield Started(about, passes_of(case))
    for what in passes_of(case):
        if missing:
            yield Row(ModelRow(about=about, what=what, verdict="absent", reason=missing))
        else:
            yield Row(_measured(case, about, what, rounds))
    yield Finished()


def about_of(path: Path, case: ModelCase) -> About:
    """What is known of a model before it runs."""
    return About(
        model=path.stem,
        name=case.name,
        recurrent=case.recurrent,
        call=case.call,
        source=case.source,
        requires=case.requires,
        no_deps=case.no_deps,
        remark=case.remark,
    )


def _measured(case: ModelCase, about: About, what: What, rounds: int) -> ModelRow:
    versions = _versions(case)
    try:
        found = measure_pass(case, what, rounds=rounds)
    except Exception as error:  # noqa: BLE001 - a model may raise anything
        reason = described(error)
        return ModelRow(about=about, what=what, verdict="failed", reason=reason, versions=versions)
    return ModelRow(
        about=about,
        what=what,
        verdict="wrong" if found.wrong else "right",
        reason=found.wrong,
        eager=Quantiles.of(found.eager),
        compiled=Quantiles.of(found.compiled),
        share=found.share,
        versions=versions,
    )


def _versions(case: ModelCase) -> dict[str, str]:
    names = [parse(requirement)[0] for requirement in case.requires]
    found = {name: version_of(name) for name in PACKAGES} | {n: installed(n) for n in names}
    known = {name: version for name, version in found.items() if version is not None}
    return {"python": platform.python_version(), **known}


def send_all(path: Path, rounds: int, send: Callable[[bytes], object]) -> None:
    """Send every answer as a line of JSON."""
    for answer in answers(path, rounds):
        send(msgspec.json.encode(answer) + b"\n")


def main() -> None:
    """Measure the model of the file on the command line, with as many rounds as it says."""
    # Redirects the output of libraries to standard error: only answers may go to standard output.
    replies = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    send_all(Path(sys.argv[1]), int(sys.argv[2]), replies.write)


if __name__ == "__main__":
    main()

"""Measures the models of `benchmarks/models/`, those of one package in an environment of its own.

python benchmarks/whole_models.py [--only A,B] [--rounds N] [-o FILE.json]

An environment has torch and the compilers of `constraints.txt`, and what its models require. It is
made in `build/models/` and kept. pip takes packages from where it is configured to: PyTorch's
default build for Linux brings several GB of CUDA, see the README. With `--python` the models that
`--only` names run in an environment that is there already.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from msgspec.structs import replace

from rnnjit.bench.models import ModelCase, load_case
from rnnjit.bench.models.records import ModelReport, ModelRow, merge, read_models
from rnnjit.bench.models.requirements import parse
from rnnjit.bench.models.run import model_files
from rnnjit.bench.models.trial import passes_of
from rnnjit.bench.models.worker import about_of
from rnnjit.bench.records import encode

ROOT = Path(__file__).parent.parent
FOLDER, RESULTS = ROOT / "benchmarks/models", ROOT / "benchmarks/results/models.json"
ENVIRONMENTS = ROOT / "build/models"
#: What every environment has, with the versions of `constraints.txt`.
PINNED = ("torch", "numba", "llvmlite")


class Environment(NamedTuple):
    """An environment and the models that run in it.

    Attributes:
        requires: what it has besides `PINNED` and rnnjit.
        no_deps: as in `ModelCase`.
        models: the files of its models, with what they describe.
    """

    requires: tuple[str, ...]
    no_deps: tuple[str, ...]
    models: tuple[tuple[Path, ModelCase], ...]

    @property
    def folder(self) -> Path:
        """Where it lies."""
        return ENVIRONMENTS / "_".join(self.requires).replace("==", "-")

    @property
    def python(self) -> Path:
        """Its interpreter: the one of this process if its models need no package."""
        return self.folder / "bin/python" if self.requires else Path(sys.executable)


def environments(files: Iterable[Path]) -> list[Environment]:
    """One environment for all models that need the same packages."""
    found: dict[tuple[tuple[str, ...], tuple[str, ...]], list[tuple[Path, ModelCase]]] = {}
    for path in files:
        case = load_case(path)
        found.setdefault((tuple(sorted(case.requires)), case.no_deps), []).append((path, case))
    return [Environment(*needs, tuple(models)) for needs, models in found.items()]


def installs(environment: Environment, pins: dict[str, str]) -> list[list[str]]:
    """The arguments of pip, once for each of its calls.

    Args:
        environment: the environment.
        pins: versions by name, of `constraints.txt`.
    """
    named = {parse(requirement)[0]: requirement for requirement in environment.requires}
    whole = [requirement for name, requirement in named.items() if name not in environment.no_deps]
    bare = [named[name] for name in environment.no_deps]
    fixed = [f"{name}=={pins[name]}" for name in PINNED if name not in named]
    calls = [["install", "--quiet", *fixed, *whole, "-e", str(ROOT)]]
    return [*calls, ["install", "--quiet", "--no-deps", *bare]] if bare else calls


def make(environment: Environment) -> str:
    """Make an environment, unless it is there; returns why it cannot be made, or ""."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    calls = installs(environment, dict(line.split("==") for line in lines))
    made = environment.folder / "made.txt"
    if not environment.requires or (made.exists() and made.read_text() == str(calls)):
        return ""
    print(f"making {environment.folder.relative_to(ROOT)}", flush=True)
    commands = [[sys.executable, "-m", "venv", "--clear", str(environment.folder)]]
    commands += [[str(environment.python), "-m", "pip", *call] for call in calls]
    for command in commands:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            errors = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
            return next((line for line in errors if line.startswith("ERROR")), errors[-1])
    made.write_text(str(calls))
    return ""


def measure(python: Path, files: Sequence[Path], options: Sequence[str]) -> ModelReport | None:
    """Run the preset in an environment, on this tree's rnnjit; None if it gives no report."""
    names = ",".join(path.stem for path in files)
    tree = os.pathsep.join(map(str, (ROOT, ROOT / "backends")))
    with TemporaryDirectory() as folder:
        out = Path(folder, "report.json")
        command = [str(python), "-m", "rnnjit", "bench", "--preset", "models"]
        command += ["--models", str(FOLDER), "--only", names, "--json", str(out), *options]
        subprocess.run(command, env={**os.environ, "PYTHONPATH": tree}, check=False)
        return read_models(out) if out.exists() else None


def absent(environment: Environment, reason: str) -> list[ModelRow]:
    """The rows of models whose environment cannot be made or used."""
    return [
        ModelRow(
            about=about_of(path, case),
            what=what,
            verdict="absent",
            reason=reason,
        )
        for path, case in environment.models
        for what in passes_of(case)
    ]


def run(files: Sequence[Path], options: Sequence[str]) -> ModelReport | None:
    """Measure models, each in its environment, and merge the reports; None if there is none."""
    reports: list[ModelReport] = []
    rows: list[ModelRow] = []
    for environment in environments(files):
        if reason := make(environment):
            # What pip says may name the user's own index, which is nothing for a report.
            print(f"{environment.folder.name}: {reason}", file=sys.stderr)
            rows += absent(environment, "pip could not install its packages")
            continue
        files_of = [path for path, _ in environment.models]
        found = measure(environment.python, files_of, options)
        if found is None:
            rows += absent(environment, "the preset gave no report")
            continue
        reports.append(found)
        if not found.complete:
            break
    if not reports:
        return None
    return merge([*reports, replace(reports[-1], rows=tuple(rows))])


def main(arguments: list[str] | None = None) -> int:
    """Measure, and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--only", metavar="A,B", help="these models; the report keeps the rows of the others"
    )
    parser.add_argument("--rounds", metavar="N", help="samples of each time")
    parser.add_argument("--threads", metavar="N", help="threads of each process")
    parser.add_argument(
        "--python", type=Path, metavar="FILE", help="run them with the packages of this interpreter"
    )
    parser.add_argument("-o", "--output", type=Path, default=RESULTS, metavar="FILE.json")
    given = parser.parse_args(arguments)
    files = model_files(FOLDER)
    chosen = files if given.only is None else [f for f in files if f.stem in given.only.split(",")]
    options = [
        word
        for name in ("rounds", "threads")
        if getattr(given, name) is not None
        for word in (f"--{name}", getattr(given, name))
    ]
    python = given.python
    found = run(chosen, options) if python is None else measure(python, chosen, options)
    if found is None:
        print("nothing was measured", file=sys.stderr)
        return 1
    if given.only is not None and given.output.exists():
        found = merge([read_models(given.output), found])
    stems = {path.stem for path in files}
    rows = tuple(row for row in found.rows if row.about.model in stems)
    command = "python benchmarks/whole_models.py"
    given.output.write_bytes(encode(replace(found, rows=rows, command=command)))
    return 0 if found.complete else 130


if __name__ == "__main__":
    raise SystemExit(main())

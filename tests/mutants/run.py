"""Breaks the project one line at a time; `make test` must notice each.

    python tests/mutants/run.py [--only TEXT]

Each mutant of `mutants.toml` is made in a copy of the sources, and the tests that are to notice it
run there, with the options of `make test`. The exit status is 1 if one survives.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import tomllib
from rich.console import Console
from rich.markup import escape

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
MUTANTS = tomllib.loads((HERE / "mutants.toml").read_text())["mutant"]
_COPIED = ("rnnjit", "backends", "tests", "benchmarks", "conftest.py", "pyproject.toml")
_SIMULATED = "tests/backends/cuda/simulated"


def copy_to(folder: Path) -> None:
    """Copy the sources and the object code that is cached for tests."""
    for name in _COPIED:
        source = ROOT / name
        if source.is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "results")
            shutil.copytree(source, folder / name, ignore=ignored)
        else:
            shutil.copy(source, folder / name)
    cache = ROOT / "build" / "test-cache"
    if cache.is_dir():
        shutil.copytree(cache, folder / "build" / "test-cache")


def survives(mutant: dict[str, Any], folder: Path) -> tuple[bool, str]:
    """Whether no test fails with the line broken, and the first that fails."""
    file = folder / mutant["file"]
    whole = file.read_text()
    file.write_text(whole.replace(mutant["old"], mutant["new"]))
    path = os.pathsep.join(str(folder / part) for part in (".", "backends"))
    own = {"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
    if mutant["noticed_by"] == [_SIMULATED]:
        own["NUMBA_ENABLE_CUDASIM"] = "1"
    command = [sys.executable, "-m", "pytest", "-qx", "-p", "no:cacheprovider"]
    try:
        done = subprocess.run(
            [*command, *mutant["noticed_by"]],
            cwd=folder,
            env=os.environ | own,
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        file.write_text(whole)
    # 1: tests failed. Anything else says nothing of the mutant, unless the process itself ended.
    failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    noticed = done.returncode == 1 or done.returncode < 0
    ended = f"the process of the tests ended with status {done.returncode}"
    return not noticed, (failed or [ended])[0]


def main() -> int:
    """Make every mutant; 1 if one survives."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="text of the file or of the broken line")
    text = parser.parse_args().only
    console, survivors = Console(width=160, highlight=False), 0
    with tempfile.TemporaryDirectory(prefix="rnnjit-mutants-") as name:
        copy_to(Path(name))
        for mutant in MUTANTS:
            if text not in mutant["file"] + mutant["new"]:
                continue
            start = time.monotonic()
            survived, said = survives(mutant, Path(name))
            survivors += survived
            end = "[bold red]survives[/]" if survived else escape(said.partition(" - ")[0])
            line = escape(mutant["new"].partition("\n")[0])
            console.print(f"{mutant['file']}: {line}", style="bold")
            console.print(f"    {time.monotonic() - start:.0f} s: {end}")
    return int(survivors > 0)


if __name__ == "__main__":
    sys.exit(main())

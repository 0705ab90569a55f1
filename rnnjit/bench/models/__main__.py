"""`python -m rnnjit.bench.models FILE.py`: compares and times one model in this process."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console

from rnnjit.bench.models.case import load_case
from rnnjit.bench.models.trial import Found, measure
from rnnjit.bench.report.results import duration, times


def main() -> None:
    """Measure the model of the file that the command line names, and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--rounds", type=int, default=9, help="0 compares the results alone")
    arguments = parser.parse_args()
    out = Console(highlight=False)
    for found in measure(load_case(arguments.file), rounds=arguments.rounds):
        out.print(f"{found.what}: {found.wrong or 'right'}{_times(found)}", soft_wrap=True)


def _times(found: Found) -> str:
    if found.eager is None or found.compiled is None or found.share is None:
        return ""
    before, after = found.eager.median, found.compiled.median
    return (
        f", {times(before / after)}: {duration(before)} eager, of which {found.share:.0%} "
        f"recurrent, and {duration(after)} compiled"
    )


if __name__ == "__main__":
    main()

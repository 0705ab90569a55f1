"""The plots of a benchmark as pictures: SVG and PNG, for light and dark backgrounds.

python benchmarks/pictures.py FILE.json -o docs/pictures
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rnnjit.bench.models.records import ModelReport, read_models
from rnnjit.bench.records import Report, read
from rnnjit.bench.report.plots import write_plots


def main(arguments: list[str] | None = None) -> int:
    """Read the report that `rnnjit bench` wrote and draw it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("report", type=Path, metavar="FILE.json", help="what `rnnjit bench` wrote")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FOLDER")
    parser.add_argument(
        "--only", nargs="+", metavar="KEY", help="plots whose names begin with one of these"
    )
    given = parser.parse_args(arguments)
    try:
        for file in write_plots(read_any(given.report), given.output, only=given.only):
            print(file)
    except (OSError, ValueError) as error:
        print(f"{given.report}: {error}", file=sys.stderr)
        return 2
    return 0


def read_any(path: Path) -> Report | ModelReport:
    """The report in a file, on layers or on whole models; errors are those of `read`."""
    try:
        return read_models(path)
    except ValueError:
        return read(path)


if __name__ == "__main__":
    raise SystemExit(main())

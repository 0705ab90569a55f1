"""The plots of a benchmark as pictures: SVG and PNG, for light and dark backgrounds.

python benchmarks/pictures.py FILE.json -o docs/pictures
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import msgspec

from rnnjit.bench.plots import write_plots
from rnnjit.bench.records import Report


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
        report = msgspec.json.decode(given.report.read_bytes(), type=Report)
        for file in write_plots(report, given.output, only=given.only):
            print(file)
    except (OSError, msgspec.MsgspecError) as error:
        print(f"{given.report}: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

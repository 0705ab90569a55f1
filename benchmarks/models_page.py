"""Writes the table of whole models into `docs/models.md`.

python benchmarks/models_page.py [FILE.json]

The table stands between two comments, and is that of the committed report.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from rnnjit.bench.models.records import read_models
from rnnjit.bench.report.models import markdown

ROOT = Path(__file__).parent.parent
PAGE, RESULTS = ROOT / "docs/models.md", ROOT / "benchmarks/results/models.json"
BEGIN, END = "<!-- table of benchmarks/results/models.json -->\n", "<!-- end of the table -->\n"


def table_of(page: str) -> str:
    """The table on a page, without the comments around it.

    Raises:
        ValueError: the page has no such comments.
    """
    _, begin, rest = page.partition(BEGIN)
    table, end, _ = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page needs the lines {BEGIN.strip()!r} and {END.strip()!r}")
    return table.strip("\n") + "\n"


def with_table(page: str, table: str) -> str:
    """The page with another table."""
    table_of(page)
    before, _, rest = page.partition(BEGIN)
    return f"{before}{BEGIN}\n{table}\n{END}{rest.partition(END)[2]}"


def main(arguments: list[str] | None = None) -> int:
    """Read the report, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("report", type=Path, nargs="?", default=RESULTS, metavar="FILE.json")
    given = parser.parse_args(arguments)
    table = markdown(read_models(given.report))
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8"), table), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

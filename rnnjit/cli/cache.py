"""`rnnjit cache`: lists or removes the compiled kernels and measurements on disk."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections import defaultdict
from collections.abc import Iterable

from rich.filesize import decimal
from rich.table import Table

from rnnjit.cli.output import console
from rnnjit.cli.parser import Commands, Parser, one_line
from rnnjit.runtime import object_cache
from rnnjit.runtime.private_directory import Entry

_KINDS = {
    "o": "compiled kernels (.o)",
    "tuned": "measurements of rnnjit.tune (.tuned)",
    "tmp": "left behind by killed processes (.tmp)",
}


def add(commands: Commands[Parser]) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "cache",
        help="list or remove the compiled kernels and measurements on disk",
        description="Show the directory of compiled kernels and measurements, and how many files "
        f"of each kind are in it. {object_cache.DIRECTORY_VARIABLE} names another directory. The "
        "exit status is 1 if the directory cannot be used or emptied.",
    )
    parser.add_argument("--clear", action="store_true", help="remove these files, and no others")
    parser.set_defaults(run=run)


def run(arguments: Namespace) -> int:
    """Print the files that are kept, or that were removed."""
    place = None
    try:
        place = object_cache.directory()
        found = object_cache.clear() if arguments.clear else object_cache.kept()
    except FileNotFoundError:
        found = []
    except OSError as error:
        said = f"rnnjit cache: {place or 'no directory'}: {error.strerror or error}"
        sys.stderr.write(one_line(said) + "\n")
        return 1
    print(place)  # noqa: T201 - what the command gives
    console().print(_table(found, "removed" if arguments.clear else "files"))
    return 0


def _table(entries: Iterable[Entry], heading: str) -> Table:
    """A row for every kind of file, and a row for the total."""
    sizes: defaultdict[str, list[int]] = defaultdict(list)
    for entry in entries:
        sizes[entry.name.rpartition(".")[2]].append(entry.size)
    table = Table("kind", heading, "size")
    for kind, found in sorted(sizes.items()):
        table.add_row(_KINDS.get(kind, kind), str(len(found)), decimal(sum(found)))
    everything = [size for found in sizes.values() for size in found]
    table.add_row("all", str(len(everything)), decimal(sum(everything)))
    return table

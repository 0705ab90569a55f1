"""`rnnjit cache`: lists or removes the compiled kernels and measurements on disk; their bound."""

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
        description="Show the directory of compiled kernels and measurements, how many files of "
        "each kind are in it, their size, and how much is kept at the most; then those that were "
        f"used least recently are removed. {object_cache.DIRECTORY_VARIABLE} names another "
        f"directory, {object_cache.BOUND_VARIABLE} another bound, in MB. The exit status is 1 if "
        "the directory cannot be used or emptied.",
    )
    parser.add_argument("--clear", action="store_true", help="remove these files, and no others")
    parser.set_defaults(run=run)


def run(arguments: Namespace) -> int:
    """Print the files that are kept, or that were removed."""
    place = None
    try:
        most = object_cache.bound()
        place = object_cache.directory()
        found = object_cache.clear() if arguments.clear else object_cache.kept()
    except FileNotFoundError:
        found = []
    except OSError as error:
        said = f"rnnjit cache: {place or 'no directory'}: {error.strerror or error}"
        sys.stderr.write(one_line(said) + "\n")
        return 1
    except ValueError as error:
        sys.stderr.write(one_line(f"rnnjit cache: {error}") + "\n")
        return 1
    print(place)  # noqa: T201 - what the command gives
    console().print(_table(found, "removed" if arguments.clear else "files", most))
    return 0


def _table(entries: Iterable[Entry], heading: str, most: int) -> Table:
    """A row for every kind of file, a row for the total, and one for the bound."""
    sizes: defaultdict[str, list[int]] = defaultdict(list)
    for entry in entries:
        sizes[entry.name.rpartition(".")[2]].append(entry.size)
    table = Table("kind", heading, "size")
    for kind, found in sorted(sizes.items()):
        table.add_row(_KINDS.get(kind, kind), str(len(found)), decimal(sum(found)))
    everything = [size for found in sizes.values() for size in found]
    table.add_row("all", str(len(everything)), decimal(sum(everything)))
    table.add_row(f"at most ({object_cache.BOUND_VARIABLE})", "", decimal(most))
    return table

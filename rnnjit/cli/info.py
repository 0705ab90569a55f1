"""`rnnjit info`: describes this machine, its packages and its backends."""

from __future__ import annotations

from argparse import Namespace

from rich.table import Table
from rich.text import Text

from rnnjit.cli.output import console, write_json
from rnnjit.cli.parser import Commands, Parser
from rnnjit.tools.environment import Environment, environment


def add(commands: Commands[Parser]) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "info",
        help="versions, processor, threads, and which backends can run here",
        description="Versions, processor, threads, and which backends can run on this machine.",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.set_defaults(run=run)


def run(arguments: Namespace) -> int:
    """Print the environment."""
    found = environment()
    if arguments.json:
        write_json(found.as_dict(), "-")
    else:
        console().print(_machine(found), _backends(found), sep="\n")
    return 0


def _machine(found: Environment) -> Table:
    table = Table.grid(padding=(0, 2))
    for package, version in found.versions.items():
        table.add_row(package, Text(version or "not installed"))
    table.add_row("system", Text(found.system))
    table.add_row("processor", Text(found.cpu or "unknown"))
    table.add_row("features", Text(" ".join(found.features) or "unknown"))
    table.add_row("PyTorch uses", Text(found.capability))
    table.add_row("threads", Text(f"{found.threads} of {found.cpus} processors"))
    if found.teams:
        table.add_row("", Text(f"kernels run on one: {found.teams}"))
    return table


def _backends(found: Environment) -> Table:
    table = Table("backend", "here", title="Backends, in the order of auto", title_justify="left")
    for backend in found.backends:
        reasons = "\n".join(backend.missing)
        table.add_row(Text(backend.name), Text(reasons or "available"))
        for name, choice in backend.choices.items():
            table.add_row("", Text(f"{name}: {choice}"))
    return table

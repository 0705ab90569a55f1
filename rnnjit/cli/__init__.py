"""The command line: `rnnjit info`, `compare`, `bench`, `check`, `export` and `cache`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from rnnjit import __version__
from rnnjit.cli import bench, cache, check, compare, export, info
from rnnjit.cli.parser import Parser, UsageError

_BROKEN_PIPE = 141
_INTERRUPTED = 130


def build_parser() -> Parser:
    """The parser of all commands."""
    parser = Parser(
        prog="rnnjit",
        description="Run PyTorch's recurrent layers on compiled backends, and see what each does.",
    )
    parser.add_argument("--version", action="version", version=f"rnnjit {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", dest="command", required=True)
    for module in (info, compare, bench, check, export, cache):
        module.add(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the arguments, or None for those of the process.

    Returns:
        The exit status: 0 on success, 1 if a backend or the cache failed, 130 after Ctrl-C, 141 if
        the reader closed the output pipe.

    Raises:
        SystemExit: with status 2 for invalid arguments, after one line on stderr that explains the
            error, and with status 0 after `--help` and `--version`.
    """
    parser = build_parser()
    try:
        arguments = parser.parse_args(argv)
        status: int = arguments.run(arguments)
        sys.stdout.flush()
    except UsageError as error:
        parser.prog = f"{parser.prog} {arguments.command}"
        parser.error(str(error))
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:
        # At exit the interpreter flushes stdout, which must not go to the broken pipe again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _BROKEN_PIPE
    return status

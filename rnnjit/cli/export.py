"""`rnnjit export`: compiles the recurrent layers of a saved model ahead of time."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from rnnjit.artifact import export_artifact, targets
from rnnjit.cli import models
from rnnjit.cli.output import say
from rnnjit.cli.parser import Commands, Parser, UsageError, first_line
from rnnjit.frontend.capture import CELL_OF_NONLINEARITY


def add(commands: Commands[Parser]) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "export",
        help="compile the recurrent layers of a saved model for a machine without Python",
        description="Write an nn.RNN, nn.LSTM or nn.GRU and its weights, compiled ahead of time, "
        "into a directory: an object file (or source for a GPU), a C header, the weights and a "
        "manifest. A model with several gets a directory for each, inside DIR.",
    )
    parser.add_argument("model", metavar="MODEL", help="what torch.save wrote")
    parser.add_argument("-o", "--output", metavar="DIR", required=True, help="where to write")
    parser.add_argument(
        "--target",
        choices=_Targets(),
        default="native",
        metavar="NAME",
        help="one of %(choices)s; default: native",
    )
    parser.add_argument("--name", default="rnn", help="prefix of C symbols and file names")
    parser.add_argument("--overwrite", action="store_true", help="replace an artifact in DIR")
    parser.add_argument(
        "--nonlinearity",
        choices=CELL_OF_NONLINEARITY,
        help="nonlinearity of a state_dict, which does not record it",
    )
    parser.add_argument(
        "--trust",
        action="store_true",
        help="import the classes that the file names, even if they are not PyTorch's",
    )
    parser.set_defaults(run=run)


def run(arguments: Namespace) -> int:
    """Export every RNN of the model, and print where it is."""
    rnns = models.read(
        arguments.model,
        nonlinearity=arguments.nonlinearity,
        trust=arguments.trust,
        say=partial(say, "export"),
    )
    for path, rnn in rnns.items():
        place = Path(arguments.output) / path if len(rnns) > 1 else Path(arguments.output)
        try:
            export_artifact(
                rnn,
                place,
                target=arguments.target,
                name=arguments.name,
                overwrite=arguments.overwrite,
            )
        except (TypeError, ValueError, OSError) as error:
            said = first_line(error).replace("overwrite=True", "--overwrite")
            raise UsageError(said) from None
        print(f"{path or type(rnn).__name__}: {place}")  # noqa: T201 - what the command gives
    return 0


class _Targets:
    """The names of the targets, looked up lazily, since the backends then import compilers."""

    def __iter__(self) -> Iterator[str]:
        return iter(targets())

    def __contains__(self, name: object) -> bool:
        return name in targets()

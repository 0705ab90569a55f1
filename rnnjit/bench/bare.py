"""Starts the process of a contestant that is not rnnjit's without importing rnnjit, and so torch.

A peer's first call is to take as long, and its process to be as large, as if rnnjit were not there.
Run as a file, this puts an empty package in rnnjit's place, through which its parts are found.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

HERE = Path(__file__).resolve().parent


def main() -> None:
    """Run the worker on the arguments of the process."""
    # The folder of the file that is run, in which modules have the names of other libraries.
    sys.path[:] = [place for place in sys.path if Path(place).resolve() != HERE]
    for name, place in (("rnnjit", HERE.parent), ("rnnjit.bench", HERE)):
        package = ModuleType(name)
        package.__path__ = [str(place)]
        sys.modules[name] = package
    from rnnjit.bench.worker import main

    main()


if __name__ == "__main__":
    main()

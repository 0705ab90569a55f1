"""`rnnjit.bench.worker` for contestants that are not rnnjit's, isolated from rnnjit and torch.

rnnjit must not add to the first-call time or the memory of a peer. Run as a file, this module
replaces rnnjit's packages by empty ones with the same search path, so that submodules can be
imported without running the `__init__` modules of rnnjit.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

HERE = Path(__file__).resolve().parent


def main() -> None:
    """Run the worker on the arguments of the process."""
    # Python adds the directory of the script to the path.
    sys.path[:] = [place for place in sys.path if Path(place).resolve() != HERE]
    places = {
        "rnnjit": HERE.parent,
        "rnnjit.bench": HERE,
        "rnnjit.runtime": HERE.parent / "runtime",
    }
    for name, place in places.items():
        package = ModuleType(name)
        package.__path__ = [str(place)]
        sys.modules[name] = package
    from rnnjit.bench.worker import main

    main()


if __name__ == "__main__":
    main()

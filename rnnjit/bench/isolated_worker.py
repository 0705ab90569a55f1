"""`rnnjit.bench.worker` for contestants that are not rnnjit's, isolated from rnnjit and torch.

A peer's first call is to take as long, and its process to be as large, as if rnnjit were not there.
Run as a file, this puts empty packages in the place of rnnjit's, through which modules are found.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

HERE = Path(__file__).resolve().parent


def main() -> None:
    """Run the worker on the arguments of the process."""
    # Python puts the folder of the file that it runs there.
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

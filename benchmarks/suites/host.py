"""The name of this machine's file of results: its processor and its threads.

python benchmarks/suites/host.py
"""

from __future__ import annotations

import platform
import re

_NOISE = re.compile(r"\((r|tm|c)\)|\b(cpu|processor|\d+-core)\b")


def slug(cpu: str, threads: int) -> str:
    """A readable file name, the same for all machines with such a processor.

    Example:
        >>> slug("Intel(R) Xeon(R) Gold 6430 CPU @ 2.10GHz", 2)
        'intel-xeon-gold-6430-2-10ghz-2-threads'
    """
    plain = _NOISE.sub(" ", cpu.lower())
    words = re.sub(r"[^a-z0-9]+", "-", plain).strip("-") or "unknown"
    return f"{words}-{threads}-thread{'' if threads == 1 else 's'}"


def main() -> None:
    """Print it."""
    from rnnjit.tools.environment import environment

    here = environment()
    print(slug(here.cpu or platform.machine(), here.threads))


if __name__ == "__main__":
    main()

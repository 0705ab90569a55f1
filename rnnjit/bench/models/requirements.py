"""The distributions that a model needs, and those that are installed."""

from __future__ import annotations

import re
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version

_EXACT = re.compile(r"(?P<name>[A-Za-z0-9][\w.-]*)(\[[\w,.-]+\])?==(?P<version>[\w.!+-]+)")


def parse(requirement: str) -> tuple[str, str]:
    """The name and the version of a requirement such as "silero-vad==6.2.3".

    Raises:
        ValueError: it names no exact version.
    """
    found = _EXACT.fullmatch(requirement)
    if found is None:
        raise ValueError(
            "requires must name exact versions, such as 'silero-vad==6.2.3', "
            f"got {requirement!r}: write NAME==VERSION"
        )
    return found["name"], found["version"]


def lacking(requires: Iterable[str]) -> str:
    """What is not installed here of the requirements, such as "needs a==1.2, found none"; or ""."""
    missing = []
    for requirement in requires:
        name, wanted = parse(requirement)
        found = installed(name)
        # A build's own suffix, such as +cpu, counts only if it is asked for.
        if found is None or wanted not in (found, found.partition("+")[0]):
            missing.append(f"needs {requirement}, found {found or 'none'}")
    return "; ".join(missing)


def installed(name: str) -> str | None:
    """The version of an installed distribution, or None."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None

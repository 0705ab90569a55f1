"""Whether a package is here in a release that a backend can use, without importing it."""

from __future__ import annotations

import re
from functools import cache
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec

_BOUND = re.compile(r"(>=|<)\s*(\d+(?:\.\d+)*)")
_RELEASE = re.compile(r"\d+(?:\.\d+)*")


def lacking(distribution: str, module: str, releases: str, install: str) -> list[str]:
    """Why a package cannot be used, with what to do about it; empty if there is nothing.

    Args:
        distribution: the package's name, as it is installed by.
        module: what is imported of it.
        releases: those that will do, such as ">=0.65,<0.69" (see `admits`).
        install: the command that installs one.
    """
    found = _installed(distribution, module)
    if found is None:
        return [f"{distribution} is not installed: {install}"]
    if not admits(releases, found):
        return [f"{distribution} {found} is installed, {releases} is needed: {install}"]
    return []


def admits(releases: str, version: str) -> bool:
    """Whether a version lies within bounds.

    What follows a version's numbers, such as rc1 or +cpu, does not count: a candidate of the
    release before which a range ends lies outside, as that release does.

    Args:
        releases: bounds with >= and <, such as ">=0.65,<0.69".
        version: as an installed distribution gives it; one without numbers lies outside.

    Example:
        >>> admits(">=0.65,<0.69", "0.68.1"), admits(">=0.65,<0.69", "0.69.0rc1")
        (True, False)
    """
    match = _RELEASE.match(version)
    if match is None:
        return False
    here = _numbers(match[0])
    return all(
        here >= _numbers(bound) if sign == ">=" else here < _numbers(bound)
        for sign, bound in _BOUND.findall(releases)
    )


@cache
def needed(distribution: str, of: str) -> str | None:
    """The releases of one distribution that another, installed one asks for, or None.

    Args:
        distribution: the name of the one.
        of: the name of the other.
    """
    try:
        lines = requires(of) or ()
    except PackageNotFoundError:
        return None
    for line in lines:
        if re.match(rf"{re.escape(distribution)}\b(?!-)", line):
            bounds = sorted(_BOUND.findall(line.partition(";")[0]), reverse=True)
            return ",".join(map("".join, bounds)) or None
    return None


@cache
def _installed(distribution: str, module: str) -> str | None:
    """The version that is installed, or None; also where there are traces of a package alone."""
    try:
        return version(distribution) if find_spec(module) is not None else None
    except PackageNotFoundError:
        return None


def _numbers(release: str) -> tuple[int, ...]:
    """The numbers of a release, to be compared; 0.65.0 and 0.65 are one."""
    numbers = [int(number) for number in release.split(".")]
    while numbers and not numbers[-1]:
        numbers.pop()
    return tuple(numbers)

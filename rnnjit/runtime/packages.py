"""Whether a package is here in a release that a backend can use, without importing it."""

from __future__ import annotations

import re
from functools import cache
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec

_REQUIREMENT = re.compile(
    r"(?P<what>[\w.-]+(?:\[[\w.,-]+\])?)\s*(?P<bounds>[^;]*);.*\bextra\s*==\s*['\"](?P<extra>\w+)"
)
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


def install(extra: str, *distributions: str) -> str:
    """The command that installs what an extra of rnnjit holds.

    It names the packages themselves, so that it works in any folder: pip would look for an extra of
    rnnjit in a package index, where rnnjit is not.

    Args:
        extra: such as "bench".
        *distributions: those of the extra's packages that are needed; none for all.

    Example:
        >>> install("bench", "matplotlib")
        "pip install 'matplotlib>=3.9'"
    """
    wanted = [
        f"'{what}{bounds}'"
        for what, bounds in _extra(extra)
        if not distributions or what.partition("[")[0] in distributions
    ]
    return " ".join(["pip install", *(wanted or distributions or (f"'.[{extra}]'",))])


def absent(distribution: str, extra: str, purpose: str) -> ModuleNotFoundError:
    """The error for a package that is not installed, with what to do about it.

    Args:
        distribution: the package's name, as it is installed by.
        extra: the extra of rnnjit that holds it.
        purpose: what needs it.
    """
    return ModuleNotFoundError(
        f"{purpose} needs {distribution}, which is not installed: {install(extra, distribution)}"
    )


@cache
def _extra(name: str) -> tuple[tuple[str, str], ...]:
    """The packages of an extra of rnnjit, with the options of each, and their bounds."""
    try:
        lines = requires("rnnjit") or ()
    except PackageNotFoundError:
        return ()
    found = [match for line in lines if (match := _REQUIREMENT.match(line))]
    return tuple(
        (match["what"], _sorted(match["bounds"])) for match in found if match["extra"] == name
    )


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
            return _sorted(line.partition(";")[0]) or None
    return None


@cache
def _installed(distribution: str, module: str) -> str | None:
    """The version that is installed, or None; also where there are traces of a package alone."""
    try:
        return version(distribution) if find_spec(module) is not None else None
    except PackageNotFoundError:
        return None


def _sorted(bounds: str) -> str:
    """Bounds as they are read: the lower one first, without spaces."""
    return ",".join(map("".join, sorted(_BOUND.findall(bounds), reverse=True)))


def _numbers(release: str) -> tuple[int, ...]:
    """The numbers of a release, to be compared; 0.65.0 and 0.65 are one."""
    numbers = [int(number) for number in release.split(".")]
    while numbers and not numbers[-1]:
        numbers.pop()
    return tuple(numbers)

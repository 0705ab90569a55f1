"""Whether a package is here in the release that a backend is written for, without importing it."""

from __future__ import annotations

from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec


def lacking(distribution: str, module: str, release: str, install: str = "") -> list[str]:
    """Why a package cannot be used, with what to do about it; empty if there is nothing.

    Args:
        distribution: the package's name, as it is installed by.
        module: what is imported of it.
        release: the beginning of the versions that will do, such as "0.68".
        install: the command that installs one, if it is not the plain one.
    """
    found = _installed(distribution, module)
    install = install or f"pip install '{distribution}=={release}.*'"
    if found is None:
        return [f"{distribution} is not installed: {install}"]
    if found != release and not found.startswith(f"{release}."):
        return [f"{distribution} {found} is installed, {release} is needed: {install}"]
    return []


@cache
def _installed(distribution: str, module: str) -> str | None:
    """The version that is installed, or None; also where there are traces of a package alone."""
    try:
        return version(distribution) if find_spec(module) is not None else None
    except PackageNotFoundError:
        return None

"""The backends that take part in a measurement."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rnnjit.backend import Backend
from rnnjit.dispatch import registry


def selected(names: Iterable[str] | None) -> dict[str, Backend]:
    """The installed backends of these names, in the order of `auto`; all of them for None.

    Raises:
        TypeError: `names` is a single name, or holds something else than names.
        ValueError: no installed backend has one of the names, or there is none.
    """
    known = registry.backends()
    if names is None:
        return dict(known)
    given: Any = names
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise TypeError(
            f"backends must be a list of names of backends, such as ['numba'], got {given!r}"
        )
    asked = list(given)
    for name in asked:
        if not isinstance(name, str):
            raise TypeError(f"backends must hold names of backends, got {type(name).__name__}")
        if registry.resolve(name) is None:
            raise ValueError(
                "'auto' in backends is no backend but a choice among them: name those to measure"
            )
    if not asked:
        raise ValueError("backends must name a backend at least, got none: leave it out for all")
    return {name: backend for name, backend in known.items() if name in asked}

"""Finds installed backends through the entry-point group `rnnjit.backends`."""

from __future__ import annotations

from difflib import get_close_matches
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from types import MappingProxyType

from rnnjit.backend import Backend, LayerOutput
from rnnjit.dispatch.blame import from_outside
from rnnjit.errors import described
from rnnjit.reference import BACKEND as EAGER

GROUP = "rnnjit.backends"

# Backends given as objects, kept for the whole process: traced graphs refer to them by key.
_UNINSTALLED: dict[str, Backend] = {}


class BrokenBackend(Backend):
    """A placeholder for an installed backend that could not be loaded, with the reason."""

    devices = None

    def __init__(self, name: str, reason: str) -> None:
        self.name = name  # type: ignore[misc]  # one class stands for many broken packages
        self._reason = reason

    def missing(self) -> list[str]:
        """The error that loading the entry point raised."""
        return [self._reason]

    def forward(self, *args: object, **kwargs: object) -> LayerOutput:
        """Never called, since `missing` declines every call."""
        raise RuntimeError(self._reason)


def load(entry_point: EntryPoint) -> Backend:
    """Load the backend of an entry point; a `BrokenBackend` with the reason if that fails."""
    name, value = entry_point.name, entry_point.value
    try:
        backend = entry_point.load()
    except Exception as error:
        if from_outside(error):
            raise
        return BrokenBackend(name, f"loading {value} failed: {described(error)}")
    if not isinstance(backend, Backend):
        found = type(backend).__name__
        return BrokenBackend(name, f"{value} is a {found}, expected an instance of rnnjit.Backend")
    if name == "auto":
        return BrokenBackend(name, f"{value}: 'auto' is no name for a backend")
    if backend.name != name:
        return BrokenBackend(name, f"{value} calls itself {backend.name!r}, expected {name!r}")
    priority: object = backend.priority
    if not isinstance(priority, (int, float)):
        return BrokenBackend(name, f"{value}: its priority is {priority!r}, expected a number")
    return backend


@cache
def _installed() -> MappingProxyType[str, Backend]:
    found = {EAGER.name: EAGER} | {
        point.name: load(point) for point in entry_points(group=GROUP) if point.name != EAGER.name
    }
    ordered = sorted(found.items(), key=lambda item: (-item[1].priority, item[0]))
    return MappingProxyType(dict(ordered))


def backends() -> MappingProxyType[str, Backend]:
    """Every installed backend by name, in the order in which `auto` tries them.

    A listed backend may still be unable to run on this machine: `Backend.missing` says why.

    Example:
        >>> "eager" in backends()
        True
    """
    return _installed()


def lacking(backend: Backend) -> tuple[str, ...]:
    """The reasons of `Backend.missing` for display; an exception becomes a reason as well."""
    try:
        return tuple(backend.missing())
    except Exception as error:
        if from_outside(error):
            raise
        return (f"asked what it lacks, it raised {described(error)}",)


def resolve(backend: str | Backend) -> Backend | None:
    """Resolve a `backend` argument, an instance or a name; None for "auto".

    Raises:
        TypeError: it is neither a string nor a `Backend`.
        ValueError: no installed backend has that name.
    """
    if isinstance(backend, Backend):
        return backend
    if not isinstance(backend, str):
        raise TypeError(
            "backend must be 'auto', the name of an installed backend or a rnnjit.Backend, "
            f"got {type(backend).__name__}"
        )
    if backend == "auto":
        return None
    if backend not in backends():
        names = ("auto", *backends())
        known = ", ".join(repr(name) for name in names)
        close = get_close_matches(backend.strip().lower(), names, 1)
        meant = f": did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"backend {backend!r} is not installed; expected one of {known}{meant}")
    return backends()[backend]


def key_of(backend: str | Backend) -> str:
    """The key by which a traced graph refers to a backend, for `by_key`."""
    if isinstance(backend, str):
        return backend
    if backends().get(backend.name) is backend:
        return backend.name
    key = f"{backend.name}@{id(backend)}"
    _UNINSTALLED[key] = backend
    return key


def by_key(key: str) -> Backend | None:
    """The backend for a key of `key_of`; None for "auto"."""
    return _UNINSTALLED.get(key) or resolve(key)

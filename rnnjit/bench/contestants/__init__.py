"""The contestants of benchmarks, in the order of the tables."""

from __future__ import annotations

from importlib import import_module

from rnnjit.bench.contestants.backends import Compiled, installed
from rnnjit.bench.contestants.base import Contestant
from rnnjit.bench.contestants.eager import Eager
from rnnjit.bench.contestants.jax_scan import JaxScan
from rnnjit.bench.contestants.onnx_engines import Onnxruntime, Openvino
from rnnjit.bench.contestants.unrolled import Unrolled

__all__ = ["address", "contestants", "find"]

_PEERS = (Unrolled, Onnxruntime, Openvino, JaxScan)


def contestants() -> list[Contestant]:
    """All contestants, absent ones included: eager, then the backends, then the peers."""
    return [Eager(), *installed(), *(peer() for peer in _PEERS)]


def find(name: str) -> Contestant:
    """Find a contestant by its name, or import one of the user's as "package.module:CLASS".

    Peers and eager are found without importing rnnjit; any other name is taken as a backend's.

    Raises:
        ImportError, AttributeError: there is no such class.
        TypeError: it is not a subclass of `Contestant`.
    """
    if ":" in name:
        module, _, attribute = name.partition(":")
        found = getattr(import_module(module), attribute)
        if not (isinstance(found, type) and issubclass(found, Contestant)):
            raise TypeError(f"{name} is {found!r}, expected a subclass of {Contestant.__name__}")
        return found()
    for kind in (Eager, *_PEERS):
        if kind.name == name:
            return kind()
    return Compiled(name)


def address(contestant: Contestant) -> str:
    """The name by which `find` finds the contestant in another process."""
    if isinstance(contestant, Compiled) or type(contestant) in (Eager, *_PEERS):
        return contestant.name
    return f"{type(contestant).__module__}:{type(contestant).__qualname__}"

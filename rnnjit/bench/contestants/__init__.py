"""The contestants of benchmarks, in the order of the tables."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module

from rnnjit.bench.contestants.backends import AUTO, Compiled, installed, quantizing
from rnnjit.bench.contestants.base import Contestant
from rnnjit.bench.contestants.eager import Eager
from rnnjit.bench.contestants.int8 import FLOAT32, InFloat32, TorchInt8
from rnnjit.bench.contestants.jax_scan import JaxScan
from rnnjit.bench.contestants.onnx_engines import Onnxruntime, Openvino
from rnnjit.bench.contestants.unrolled import Unrolled
from rnnjit.bench.records import Case

__all__ = ["address", "contestants", "find", "of_int8"]

_PEERS = (Unrolled, Onnxruntime, Openvino, JaxScan)
_ISOLATED = (Eager, TorchInt8, *_PEERS)


def contestants() -> list[Contestant]:
    """All contestants, absent ones included: eager, then the backends, then the peers."""
    return [Eager(), *installed(), *(peer() for peer in _PEERS)]


def of_int8(cases: Sequence[Case]) -> list[Contestant]:
    """The contestants of cases of int8, absent ones included: the baseline, then ours, then peers.

    The baseline is torch's own int8 layer if it takes every case, else eager in float32: one for
    all cases, so that ratios compare. Ours are the backends that run int8 layers, and "auto"
    without quantizing.
    """
    torch_int8, ours = TorchInt8("baseline"), [*quantizing(), InFloat32(Compiled(AUTO), "backend")]
    if not any(torch_int8.declines(case) for case in cases):
        return [torch_int8, *ours, Onnxruntime()]
    return [InFloat32(Eager(), "baseline"), *ours, TorchInt8(), Onnxruntime()]


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
    for kind in _ISOLATED:
        if kind.name == name:
            return kind()
    if name.endswith(FLOAT32):
        return InFloat32(find(name.removesuffix(FLOAT32)))
    return Compiled(name)


def address(contestant: Contestant) -> str:
    """The name by which `find` finds the contestant in another process."""
    if isinstance(contestant, Compiled | InFloat32) or type(contestant) in _ISOLATED:
        return contestant.name
    return f"{type(contestant).__module__}:{type(contestant).__qualname__}"

"""Chooses a backend for a call, and can say why."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter

from rnnjit import tuned
from rnnjit.backend import Backend
from rnnjit.errors import BackendError, UnsupportedError, described
from rnnjit.failures import FAILURES
from rnnjit.registry import backends
from rnnjit.spec import Problem, RNNSpec

_PLAIN_TYPES = frozenset({Tensor, Parameter})
_STRIDED = torch.strided


class Verdict(NamedTuple):
    """What one backend says to one call.

    Attributes:
        backend: that was asked.
        reasons: why it declines; none means that it accepts.
        gives_way: why `auto` leaves the call to others although it accepts.
    """

    backend: Backend
    reasons: tuple[str, ...]
    gives_way: tuple[str, ...] = ()


def verdict(backend: Backend, spec: RNNSpec, problem: Problem) -> Verdict:
    """Ask one backend: first whether it runs on this machine, then whether it takes the call."""
    reasons: Any = backend.missing() or backend.why_not(spec, problem)
    return Verdict(backend, _listed(backend, "why_not", reasons))


def _listed(backend: Backend, what: str, reasons: Any) -> tuple[str, ...]:
    """The reasons that a backend gave as a list, a tuple, or one string."""
    if not isinstance(reasons, (list, tuple, str)):
        raise BackendError(backend.name, what, "a list of reasons", type(reasons).__name__)
    if isinstance(reasons, str):
        reasons = [reasons] if reasons else []
    return tuple(reasons)


def verdict_for_auto(backend: Backend, spec: RNNSpec, problem: Problem) -> Verdict:
    """What `auto` makes of a backend: one that has failed, or fails to answer, declines."""
    if failed := FAILURES.reason(backend):
        return Verdict(backend, (f"{failed}, so that 'auto' leaves it out",))
    try:
        found = verdict(backend, spec, problem)
        if found.reasons:
            return found
        gives_way = _listed(backend, "gives_way", backend.gives_way(spec, problem))
        return found._replace(gives_way=gives_way)
    except Exception as error:  # noqa: BLE001 - a third party's code may fail in any way
        return Verdict(backend, (f"asked for its answer, it raised {described(error)}",))


def candidates(measured: Mapping[str, float]) -> list[Backend]:
    """Every installed backend, in the order of `auto` for a call.

    Args:
        measured: the seconds that `rnnjit.tune` measured for such calls. Those come first, the
            fastest before the others; the rest follow by priority.
    """
    known = backends()
    first = [known[name] for name in sorted(measured, key=measured.__getitem__) if name in known]
    return [*first, *(backend for backend in known.values() if backend not in first)]


def verdicts(spec: RNNSpec, problem: Problem) -> list[Verdict]:
    """Ask every installed backend, in the order of `auto`."""
    found = candidates(tuned.fetch(spec, problem))
    return [verdict_for_auto(backend, spec, problem) for backend in found]


def willing(spec: RNNSpec, problem: Problem, *, traced: bool = False) -> Iterator[Backend]:
    """The backends that `auto` may give a call to, in its order; last those that give way.

    In a traced call none does: there PyTorch's own layer is gone back through step by step.
    """
    measured, later = tuned.fetch(spec, problem), []
    for backend in candidates(measured):
        found = verdict_for_auto(backend, spec, problem)
        if found.reasons or not backend.automatic:
            continue
        if found.gives_way and backend.name not in measured and not traced:
            later.append(backend)
        else:
            yield backend
    yield from later


def choose(
    spec: RNNSpec, problem: Problem, wanted: Backend | None, *, traced: bool = False
) -> Backend:
    """The backend that runs the call.

    Args:
        spec: what the layer is.
        problem: what the call is.
        wanted: the backend that the user named, or None for "auto".
        traced: whether the call is part of a graph that torch traced.

    Raises:
        UnsupportedError: `wanted` declines. It is never replaced by another.
    """
    if wanted is not None:
        reasons = verdict(wanted, spec, problem).reasons
        if reasons:
            raise UnsupportedError(wanted.name, reasons)
        return wanted
    for backend in willing(spec, problem, traced=traced):
        return backend
    raise UnsupportedError("auto", ["every installed backend declined"])


def special_context(x: Tensor, *tensors: Tensor) -> str | None:
    """Why no backend's compiled code may see these tensors now, or None if it may.

    Such a call goes through torch's own operators, whatever backend was named: it is not another
    backend answering in its place but torch transforming the layer's definition.
    """
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return "a torch.func transform is in force"
    if forward_ad._current_level >= 0:
        return "forward-mode automatic differentiation is in force"
    if torch._C._is_any_autocast_enabled() and torch.is_autocast_enabled(x.device.type):
        return "autocast is enabled"
    if torch._C._len_torch_dispatch_stack() > 0:
        return "a TorchDispatchMode is in force, which must see torch's operators"
    return special_tensor(x, *tensors)


def special_tensor(*tensors: Tensor) -> str | None:
    """Why compiled code may not read these tensors' memory, or None if it may."""
    for tensor in tensors:
        if type(tensor) not in _PLAIN_TYPES:
            return f"a tensor is a {type(tensor).__name__}, a subclass with behaviour of its own"
        if tensor.layout is not _STRIDED or tensor.is_neg() or tensor.is_conj():
            return "a tensor's memory does not hold its values as they are (lazy or not strided)"
    return None

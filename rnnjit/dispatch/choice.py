"""Chooses the backend for a call, and gives the reasons."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter

from rnnjit.backend import Backend
from rnnjit.dispatch import tuning_db
from rnnjit.dispatch.blame import from_outside
from rnnjit.dispatch.fallback import FAILURES, RAISE, Fallback
from rnnjit.dispatch.memory import Memory
from rnnjit.dispatch.registry import backends
from rnnjit.errors import BackendError, UnsupportedError, described
from rnnjit.ir import CellSpec
from rnnjit.runtime.torch_private import (
    UNSEEN,
    any_autocast,
    dispatch_mode,
    forward_mode,
    transforming,
)
from rnnjit.spec import Problem, RNNSpec

_PLAIN_TYPES = frozenset({Tensor, Parameter})
_STRIDED = torch.strided
#: The reason of `special_context` for which torch's own layer runs, and not the reference.
AUTOCAST = "autocast is enabled"
#: By a backend's id, device, dtype and cell: the backend, so that no other gets its id, and why it
#: declines every such call, whatever its sizes.
_WHATEVER_SIZE: Memory[tuple[Hashable, ...], tuple[Backend, tuple[str, ...]]] = Memory(1024)


class Verdict(NamedTuple):
    """The answer of one backend to one call.

    Attributes:
        backend: the backend.
        reasons: why it declines; empty if it accepts.
        defers: why `auto` prefers other backends although this one accepts.
    """

    backend: Backend
    reasons: tuple[str, ...]
    defers: tuple[str, ...] = ()


class Choice(NamedTuple):
    """The backend of a call.

    Attributes:
        backend: the backend.
        sizes_matter: whether another may be chosen for a call that differs in T, B and N alone.
    """

    backend: Backend
    sizes_matter: bool


def verdict(backend: Backend, spec: RNNSpec, problem: Problem) -> Verdict:
    """Check a call against the declarations of a backend, then ask the backend.

    `Backend.why_not` is called only if the backend declares the device, the dtype and the cell of
    the call, and can run on this machine; that is remembered until a backend fails or `tune` runs.

    Raises:
        BackendError: `why_not` returned something other than reasons.
    """
    reasons = _whatever_size(backend, spec.cell, problem)
    if spec.quantized and not backend.quantized:
        reasons = (*reasons, "layers of int8 matrices are not supported")
    return Verdict(backend, reasons or _listed(backend, backend.why_not(spec, problem)))


def _whatever_size(backend: Backend, cell: CellSpec, problem: Problem) -> tuple[str, ...]:
    """Why a backend declines every call with the device, dtype and cell of this one."""
    answers = _WHATEVER_SIZE.answers()
    key = _key(backend, cell, problem)
    found = answers.get(key)
    if found is None:
        reasons = _undeclared(backend, problem) or why_not_cell(backend, cell) or backend.missing()
        found = answers[key] = backend, _listed(backend, reasons)
    return found[1]


def _key(backend: Backend, cell: CellSpec, problem: Problem) -> tuple[Hashable, ...]:
    return id(backend), problem.device, problem.dtype, cell


def _undeclared(backend: Backend, problem: Problem) -> list[str]:
    """Why the devices and dtypes that a backend declares exclude a call."""
    devices, dtypes = backend.devices, backend.dtypes
    if devices is not None and problem.device not in devices:
        return [f"the tensors are on {problem.device}: only {' and '.join(devices)} is supported"]
    if dtypes is not None and problem.dtype not in dtypes:
        known = ", ".join(map(str, dtypes))
        return [f"{problem.dtype} is not supported: only {known} are"]
    return []


def why_not_cell(backend: Backend, cell: CellSpec) -> list[str]:
    """Why a backend cannot compute layers of a cell; empty if it can."""
    if backend.operations is not None:
        unknown = sorted(cell.operations - backend.operations)
        if unknown:
            return [
                f"cell {cell.name!r} needs operations that it does not have: {', '.join(unknown)}"
            ]
    return list(_listed(backend, backend.why_not_cell(cell), "why_not_cell"))


def _listed(backend: Backend, reasons: Any, what: str = "why_not") -> tuple[str, ...]:
    """Convert the reasons of a backend, a string or a list or tuple of strings, to a tuple."""
    if not isinstance(reasons, (list, tuple, str)):
        raise BackendError(backend.name, what, "a list of reasons", type(reasons).__name__)
    if isinstance(reasons, str):
        reasons = [reasons] if reasons else []
    for reason in reasons:
        if not isinstance(reason, str):
            raise BackendError(
                backend.name, what, "a list of reasons", f"one with a {type(reason).__name__}"
            )
    return tuple(reasons)


def verdict_for_auto(backend: Backend, spec: RNNSpec, problem: Problem) -> Verdict:
    """The verdict that `auto` uses: a backend that has failed, or raises when asked, declines."""
    if failed := FAILURES.reason(backend):
        return Verdict(backend, (f"{failed}, so that 'auto' leaves it out",))
    try:
        for name in ("automatic", "sizes_matter"):  # a property may raise
            getattr(backend, name)
        found = verdict(backend, spec, problem)
        if found.reasons:
            return found
        return Verdict(backend, (), _listed(backend, backend.defers(spec, problem), "defers"))
    except Exception as error:
        if from_outside(error):
            raise
        return Verdict(backend, (f"asked for its answer, it raised {described(error)}",))


def candidates(measured: Mapping[str, float]) -> list[Backend]:
    """Every installed backend, in the order in which `auto` tries them for a call.

    Args:
        measured: seconds by backend that `rnnjit.tune` measured for such calls. The backends in it
            come first, in its order; the others follow by priority.
    """
    known = backends()
    if not measured:
        return list(known.values())
    first = [known[name] for name in measured if name in known]
    return [*first, *(backend for backend in known.values() if backend not in first)]


def verdicts(spec: RNNSpec, problem: Problem) -> list[Verdict]:
    """Ask every installed backend, in the order of `auto`."""
    found = candidates(tuning_db.recall(spec, problem))
    return [verdict_for_auto(backend, spec, problem) for backend in found]


def willing(spec: RNNSpec, problem: Problem, *, traced: bool = False) -> Iterator[Backend]:
    """Yield the backends that `auto` may choose for a call, in its order, those that defer last.

    In a traced call no backend defers: there the backward pass of the eager backend is the
    reference, which runs step by step and is slow.
    """
    return (choice.backend for choice in _choices(spec, problem, traced))


def _choices(spec: RNNSpec, problem: Problem, traced: bool) -> Iterator[Choice]:
    """`willing`, with what the answers of the backends that were asked so far depend on."""
    measured, later, sizes_matter = tuning_db.recall(spec, problem), [], False
    for backend in candidates(measured):
        found = verdict_for_auto(backend, spec, problem)
        sizes_matter = sizes_matter or _sizes_matter(backend, spec, problem)
        if found.reasons or not backend.automatic:
            continue
        if found.defers and backend.name not in measured and not traced:
            later.append(backend)
        else:
            yield Choice(backend, sizes_matter)
    yield from (Choice(backend, sizes_matter) for backend in later)


def _sizes_matter(backend: Backend, spec: RNNSpec, problem: Problem) -> bool:
    """Whether a backend, which was asked, may answer calls of other sizes otherwise."""
    if FAILURES.reason(backend):
        return False
    try:
        matter = backend.sizes_matter
    except Exception as error:
        if from_outside(error):
            raise
        return True  # it declined, see `verdict_for_auto`, and may do otherwise at the next call
    if not matter:
        return False
    if spec.quantized and not backend.quantized:
        return False
    held = _WHATEVER_SIZE.answers().get(_key(backend, spec.cell, problem))
    return held is None or not held[1]


def choose(
    spec: RNNSpec, problem: Problem, wanted: Backend | None, *, traced: bool = False
) -> Backend:
    """Choose the backend that runs the call.

    Args:
        spec: the configuration of the stack.
        problem: the properties of the call.
        wanted: the backend that the user named, or None for "auto".
        traced: whether the call is part of a graph that torch traced.

    Raises:
        UnsupportedError: `wanted` declines, or for "auto" every backend does.
    """
    return choose_for_sizes(spec, problem, wanted, traced=traced).backend


def choose_for_sizes(
    spec: RNNSpec, problem: Problem, wanted: Backend | None, *, traced: bool = False
) -> Choice:
    """As `choose`, and says whether the choice holds for other sizes of the same `kind_of`."""
    if wanted is not None:
        reasons = verdict(wanted, spec, problem).reasons
        if reasons:
            raise UnsupportedError(wanted.name, reasons)
        return Choice(wanted, wanted.sizes_matter)
    for choice in _choices(spec, problem, traced):
        return choice
    raise UnsupportedError("auto", ["every installed backend declined"])


def kind_of(spec: RNNSpec, problem: Problem) -> tuple[Hashable, ...]:
    """What a choice depends on if no backend's answer depends on the sizes of the call."""
    return spec, tuning_db.class_of(problem), problem.device_index


def fallback_for(spec: RNNSpec, problem: Problem, wanted: Backend | None) -> Fallback:
    """The policy for the case that the backend of a call raises.

    Args:
        spec: the configuration of the stack.
        problem: the properties of the call.
        wanted: the backend that the user named, or None for "auto".
    """
    return RAISE if wanted is not None else Fallback(lambda: willing(spec, problem))


def special_context(x: Tensor, *tensors: Tensor) -> str | None:
    """Why compiled code must not access these tensors in the current context, or None if it may.

    Such a call runs on torch's own operators even if the user named a backend: here torch
    transforms the operators of the layer (by `torch.func`, autocast and the like), and it cannot
    transform compiled code.
    """
    autocast = any_autocast() and torch.is_autocast_enabled(x.device.type)
    if UNSEEN and not autocast:
        names = ", ".join(UNSEEN)
        lacking = f"torch {torch.__version__} lacks {names}"
        return f"{lacking}, which rnnjit needs to detect transforms and modes"
    if transforming() and not UNSEEN:
        return "a torch.func transform is active"
    if forward_mode() and not UNSEEN:
        return "forward-mode automatic differentiation is active"
    if autocast:
        return AUTOCAST
    if dispatch_mode():
        return "a TorchDispatchMode is active, which must see torch's operators"
    return special_tensor(x, *tensors)


def special_tensor(*tensors: Tensor) -> str | None:
    """Why compiled code must not read the memory of these tensors, or None if it may."""
    for tensor in tensors:
        if type(tensor) not in _PLAIN_TYPES:
            return f"a tensor is a {type(tensor).__name__}, a subclass that may override operators"
        if tensor.layout is not _STRIDED or tensor.is_neg() or tensor.is_conj():
            return "a tensor is not strided, or is a lazy negation or conjugation of its memory"
    return None

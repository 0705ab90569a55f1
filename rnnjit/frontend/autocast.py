"""Calls under autocast, by a backend that computes in autocast's dtype.

Torch casts the operands of its products to that dtype, and computes the rest in what its promotion
of dtypes gives. A backend gets x, the states and the weights in that dtype, by casts that autograd
records, so that gradients have the dtypes of the originals. The results are cast to the dtypes
that torch's own layer gives them.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from rnnjit.backend import Backend, Shortcut, States
from rnnjit.dispatch.choice import AUTOCAST, choose, special_tensor, verdict
from rnnjit.dispatch.registry import by_key
from rnnjit.errors import UnsupportedError
from rnnjit.frontend.lowering import Call
from rnnjit.ir import CellSpec
from rnnjit.runtime.torch_private import UNSEEN, constant_in_graphs, dispatch_mode
from rnnjit.spec import Problem, RNNSpec

#: The types of devices on which a backend may run such a call.
_DEVICES = frozenset({"cpu"})
#: A part of the message of torch where oneDNN has no operator of a dtype on this processor.
_NO_PRIMITIVE = "could not create a primitive"


class ResultDtypes(NamedTuple):
    """The dtypes of results.

    Attributes:
        y: of the outputs.
        h_n: of each last state.
    """

    y: torch.dtype
    h_n: tuple[torch.dtype, ...]

    def cast(self, y: Tensor, h_n: States) -> tuple[Tensor, States]:
        """Results in these dtypes."""
        if y.dtype is not self.y:
            y = y.to(self.y)
        if [state.dtype for state in h_n] != [*self.h_n]:
            h_n = tuple([state.to(dtype) for state, dtype in zip(h_n, self.h_n, strict=True)])
        return y, h_n


#: The dtypes of results by whether torch may use oneDNN.
DtypesOf = Callable[[bool], ResultDtypes]


def problem_under_autocast(call: Call) -> Problem | None:
    """What a backend has to accept in order to run a call under autocast, or None if none may.

    None may where something else needs torch's own operators, or where a tensor has a dtype that
    autocast does not cast or that is neither float32 nor autocast's.
    """
    problem, tensors = call.problem, (call.x, *call.hx, *call.weights)
    if call.special != AUTOCAST or problem.device not in _DEVICES or not problem.N:
        return None
    if UNSEEN or dispatch_mode() or special_tensor(*tensors) is not None:
        return None
    wanted = torch.get_autocast_dtype(problem.device)
    if any(tensor.dtype not in (wanted, torch.float32) for tensor in tensors):
        return None
    return problem._replace(dtype=wanted)


def backend_under_autocast(
    spec: RNNSpec, problem: Problem, wanted: Backend | None
) -> Backend | None:
    """The backend that runs a call under autocast, or None if torch's own layer does.

    Args:
        spec: the configuration of the module.
        problem: as `problem_under_autocast` returns it.
        wanted: the backend that the user named, or None for "auto".
    """
    if wanted is not None:
        found = None if verdict(wanted, spec, problem).reasons else wanted
    else:
        found = choose(spec, problem, None)
    return found if found is not None and found.under_autocast else None


def cast_call(call: Call, problem: Problem) -> Call:
    """A call in the dtype of a problem, with casts that autograd records."""
    dtype = problem.dtype
    return call._replace(
        prepared=call.prepared._replace(x=call.x.to(dtype)),
        hx=_cast(call.hx, dtype),
        weights=_cast(call.weights, dtype),
        problem=problem,
        special=None,
    )


def cast_around(run: Shortcut, problem: Problem, results: DtypesOf) -> Shortcut:
    """A function of tensors in their own dtypes, from one of tensors in that of a problem."""
    dtype, device, known = problem.dtype, problem.device, {}
    enable = torch.set_autocast_enabled

    def own(x: Tensor, hx: States, weights: tuple[Tensor, ...]) -> tuple[Tensor, States]:
        if x.dtype is not dtype:
            x = x.to(dtype)
        hx, weights = _cast(hx, dtype), _cast(weights, dtype)
        enable(device, False)  # as `WithoutAutocast`, in half the time
        try:
            y, h_n = run(x, hx, weights)
        finally:
            enable(device, True)
        onednn = may_use_onednn()
        if onednn not in known:
            known[onednn] = results(onednn)
        return known[onednn].cast(y, h_n)

    return own


class WithoutAutocast:
    """Switches autocast off for a type of device, as `torch.autocast(..., enabled=False)` does.

    It keeps the casts that autocast has cached, and takes a tenth of the time.

    Args:
        device: the type of device, for which autocast is on.
    """

    __slots__ = ("_device",)

    def __init__(self, device: str) -> None:
        self._device = device

    def __enter__(self) -> None:
        torch.set_autocast_enabled(self._device, False)

    def __exit__(self, *_: object) -> None:
        torch.set_autocast_enabled(self._device, True)


def result_dtypes(torch_class: type[nn.Module], call: Call) -> DtypesOf:
    """The dtypes that torch's own layer or cell gives the results of a call.

    Args:
        torch_class: torch's own class.
        call: the call, as it was lowered, under autocast.

    Returns:
        A function of whether torch may use oneDNN, which the user may change at any time.
    """
    spec = call.spec
    small = RNNSpec(
        *(1, 2, min(spec.num_layers, 2), spec.cell, spec.bias),
        bidirectional=spec.bidirectional,
        proj_size=min(spec.proj_size, 1),
    )
    dtypes = call.x.dtype, *[state.dtype for state in call.hx]
    packed, even = call.prepared.packed is not None, call.rows.N == call.rows.T * call.rows.B
    # Torch may take another operator where all sequences have one length.
    sizes: tuple[int, ...] | None = None
    if packed:
        sizes = (1,) if even else (2, 1)
    where, weight = call.problem.device, call.weights[0].dtype
    autocast = torch.get_autocast_dtype(where)
    kind: Any = torch_class  # type checkers take no class for hashable
    return partial(_asked, kind, small, sizes, where, weight, dtypes, autocast)


@constant_in_graphs
def traced_dtypes(
    torch_class: Any,
    cell: str,
    num_layers: int,
    bias: bool,
    bidirectional: bool,
    proj_size: int,
    key: str,
    where: str,
    weight: torch.dtype,
    dtypes: tuple[torch.dtype, ...],
    needs_grad: bool,
) -> tuple[torch.dtype, ...] | None:
    """What the graph of a packed call under autocast is bound to.

    Torch may take another operator where all sequences have one length, which a graph cannot know:
    the dtypes are those of sequences of different lengths.

    Args:
        torch_class: torch's own class.
        cell: the cell, as `CellSpec.text`; a spec that was made while tracing is no constant.
        num_layers: as in `RNNSpec`.
        bias: as in `RNNSpec`.
        bidirectional: as in `RNNSpec`.
        proj_size: as in `RNNSpec`.
        key: key of the backend that the user asked for.
        where: the type of the device.
        weight: the dtype of the weights.
        dtypes: those of x and of each state.
        needs_grad: whether a backward pass may follow.

    Returns:
        Autocast's dtype, that of y, and that of each last state; None if torch's own layer runs.
    """
    wanted = torch.get_autocast_dtype(where)
    if where not in _DEVICES or any(d not in (wanted, torch.float32) for d in (weight, *dtypes)):
        return None
    spec = RNNSpec(
        *(1, 2, min(num_layers, 2), CellSpec.parse(cell), bias),
        bidirectional=bidirectional,
        proj_size=min(proj_size, 1),
    )
    problem = Problem(wanted, where, 2, 2, 3, True, needs_grad)
    try:
        if backend_under_autocast(spec, problem, by_key(key)) is None:
            return None
    except UnsupportedError:
        return None
    found = _asked(*(torch_class, spec, (2, 1), where, weight, dtypes, wanted, may_use_onednn()))
    return wanted, found.y, *found.h_n


def may_use_onednn() -> bool:
    """Whether torch may use oneDNN, see `torch.backends.mkldnn.flags`."""
    enabled: Any = torch.backends.mkldnn.enabled
    return bool(enabled)


@lru_cache(maxsize=1024)
def _asked(
    torch_class: type[nn.Module],
    spec: RNNSpec,
    sizes: tuple[int, ...] | None,
    where: str,
    weight: torch.dtype,
    dtypes: tuple[torch.dtype, ...],
    autocast: torch.dtype,
    onednn: bool,
) -> ResultDtypes:
    """Ask torch's own class, by one step of a small module of the same kind.

    `onednn` is how it is set at the time of the call.
    """
    cell = issubclass(torch_class, nn.RNNCellBase)
    options: dict[str, Any] = (
        {} if cell else {"bidirectional": spec.bidirectional, "num_layers": spec.num_layers}
    )
    if spec.proj_size:
        options["proj_size"] = spec.proj_size
    rows, batch = (1, 1) if sizes is None else (sum(sizes), sizes[0])
    # Made without values, so that torch's generators do not change.
    empty = torch_class(
        spec.input_size, spec.hidden_size, bias=spec.bias, device="meta", dtype=weight, **options
    )
    module = empty.to_empty(device=where).requires_grad_(False)
    x, *states = (
        torch.zeros(shape, dtype=dtype, device=where)
        for shape, dtype in zip(((rows, 1), *spec.state_shapes(batch)), dtypes, strict=True)
    )
    hx = tuple([state[0] if cell else state for state in states])
    given: Any = x if cell else x[None]
    if sizes is not None:
        given = PackedSequence(x, torch.tensor(sizes, dtype=torch.int64, device="cpu"))
    with warnings.catch_warnings():
        # That torch takes another operator than for most layers is of no matter here.
        warnings.simplefilter("ignore")
        try:
            found = module(given, hx[0] if len(hx) == 1 else hx)
        except RuntimeError as error:
            if not onednn or _NO_PRIMITIVE not in str(error):
                raise
            # Torch's own layer does not run on this processor unless oneDNN is switched off.
            with torch.backends.mkldnn.flags(enabled=False, allow_tf32=None):
                kind: Any = torch_class  # type checkers take no class for hashable
                return _asked(kind, spec, sizes, where, weight, dtypes, autocast, False)
    y, h_n = (found if isinstance(found, Tensor) else found[0], found) if cell else found
    outputs = y.data if isinstance(y, PackedSequence) else y
    last = (h_n,) if isinstance(h_n, Tensor) else h_n
    return ResultDtypes(outputs.dtype, tuple([state.dtype for state in last]))


def _cast(tensors: tuple[Tensor, ...], dtype: torch.dtype) -> tuple[Tensor, ...]:
    return tuple([t if t.dtype is dtype else t.to(dtype) for t in tensors])

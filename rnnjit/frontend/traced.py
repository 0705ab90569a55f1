"""What torch.compile and torch.export trace of a call: one operator for each layer.

It is the path of an eager call without its caches, which cannot be traced, and without checks of
values, which the operators do when the graph runs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from rnnjit.backend import Backend, States
from rnnjit.dispatch.fallback import RAISE
from rnnjit.execution.all_states import run_stack_states
from rnnjit.execution.stack import run_stack
from rnnjit.frontend import resets
from rnnjit.frontend.arguments import (
    AllStates,
    Prepared,
    Result,
    as_hx,
    as_states,
    check_packed,
    initial_states,
    prepare,
    restore,
    restore_states,
)
from rnnjit.frontend.autocast import traced_dtypes
from rnnjit.frontend.lowering import needs_grad
from rnnjit.reference import EagerBackend, ReferenceBackend
from rnnjit.runtime.torch_private import transforming_while_traced
from rnnjit.spec import Problem, RNNSpec, Rows

_REFERENCE = ReferenceBackend()
_EAGER = EagerBackend()


def run_dense(
    spec: RNNSpec, weights: tuple[Tensor, ...], key: str, training: bool, x: Any, hx: Any
) -> Result | None:
    """Trace a call with the arguments that torch's own layers have, of dense input.

    Args:
        spec: the configuration of the module.
        weights: its weights, in nn.RNN's flat order.
        key: key of the backend that the user asked for.
        training: whether dropout is on.
        x: as in `prepare`.
        hx: as in `prepare`.

    Returns:
        The results, or None if torch's own layer has to run.
    """
    # Imported here, since torch.library imports the whole of torch's compiler.
    from rnnjit.execution.torch_ops import TracedBackend

    if torch.is_autocast_enabled(weights[0].device.type):
        return None
    prepared = prepare(spec, weights[spec.typed_weight], x, hx)
    states = initial_states(spec, prepared)
    recorded = needs_grad(prepared.x, states, weights)
    backend: Backend = TracedBackend(key)
    if transforming_while_traced():
        backend = _REFERENCE
    if torch.onnx.is_in_onnx_export():
        backend = _EAGER  # ONNX has torch's recurrent operators, but not ours
    y, h_n = run_stack(
        backend, spec, prepared.rows, prepared.x, states, weights, training, recorded
    )
    return restore(spec, prepared, y, h_n)


def run_under_autocast(
    torch_class: Any,
    spec: RNNSpec,
    weights: tuple[Tensor, ...],
    key: str,
    training: bool,
    x: Any,
    hx: Any,
    reset: Any,
    reset_to: Any,
) -> Result | None:
    """Trace a call under autocast, in its dtype, with casts that autograd records.

    Args: as of `run_any`, and torch's own class. The input is packed, or there are resets.

    Returns:
        The results, or None if torch's own layer has to run.
    """
    packed = isinstance(x, PackedSequence)
    data = x.data if packed else x
    count = len(spec.cell.states)
    states = as_states(spec, hx) or ()
    own = tuple([state.dtype for state in states]) or (data.dtype,) * count
    starts = as_states(spec, reset_to) or ()
    tensors = (data, *states, *starts, *weights)
    recorded = needs_grad(data, (), tensors)
    found = traced_dtypes(
        torch_class,
        spec.cell.text,
        spec.num_layers,
        spec.bias,
        spec.bidirectional,
        spec.proj_size,
        key,
        data.device.type,
        weights[0].dtype,
        (data.dtype, *own),
        recorded,
    )
    if found is None:
        return None
    dtype, of_y, *of_h_n = found
    given = PackedSequence(data.to(dtype), *x[1:]) if packed else x.to(dtype)
    y, h_n, _ = run_any(
        *(spec, tuple([weight.to(dtype) for weight in weights]), key, training, given),
        *(_cast(hx, states, dtype), reset, _cast(reset_to, starts, dtype), False),
    )
    last = (h_n,) if count == 1 else h_n
    last = tuple([state.to(each) for state, each in zip(last, of_h_n, strict=True)])
    result = PackedSequence(y.data.to(of_y), *y[1:]) if packed else y.to(of_y)
    return result, as_hx(last)


def _cast(given: Any, states: States, dtype: torch.dtype) -> Any:
    """States in the form of an argument, in another dtype; None if none are given."""
    return None if given is None else as_hx(tuple([state.to(dtype) for state in states]))


def why_not_traced(weight: Tensor) -> str:
    """Why a call that is not `run_dense`'s cannot be traced, a key of `UNTRACED`; "" if it can."""
    if torch.is_autocast_enabled(weight.device.type):
        return "autocast"
    return "transform" if transforming_while_traced() else ""


def run_any(
    spec: RNNSpec,
    weights: tuple[Tensor, ...],
    key: str,
    training: bool,
    x: Any,
    hx: Any,
    reset: Any,
    reset_to: Any,
    return_states: bool,
) -> tuple[Any, Any, AllStates | None]:
    """Trace a call with packed input, resets or all states, for which `why_not_traced` is "".

    Args:
        spec: as in `run_dense`.
        weights: as in `run_dense`.
        key: as in `run_dense`.
        training: as in `run_dense`.
        x: as in `prepare`.
        hx: as in `prepare`.
        reset: as in `CompiledLayer.forward`.
        reset_to: as in `CompiledLayer.forward`.
        return_states: whether to return every state of every step.

    Returns:
        The two results, and the states, or None if they are not wanted.
    """
    from rnnjit.execution.torch_ops import TracedBackend

    if isinstance(x, PackedSequence):
        prepared, states = _prepared(spec, weights[spec.typed_weight], x, hx)
    else:
        prepared = prepare(spec, weights[spec.typed_weight], x, hx)
        states = initial_states(spec, prepared)
    recorded = needs_grad(prepared.x, states, weights)
    backend = TracedBackend(key)
    if reset is not None:
        resets.check(x, reset)
        starts = resets.starting_states(spec, x, reset_to) or ()
        recorded = recorded or needs_grad(x, starts, ())
        mask = resets.time_major(spec, reset)
        layers = [tuple([start[index] for start in starts]) for index in range(spec.num_layers)]
        backend = TracedBackend(key, mask, layers)
    rows, flat = prepared.rows, prepared.x
    if not return_states:
        y, h_n = run_stack(backend, spec, rows, flat, states, weights, training, recorded)
        return *restore(spec, prepared, y, h_n), None
    where, index, packed = flat.device.type, flat.get_device(), prepared.packed is not None
    problem = Problem(flat.dtype, where, rows.T, rows.B, rows.N, packed, recorded, index)
    y, h_n, after = run_stack_states(
        backend, spec, problem, rows, flat, states, weights, training, RAISE
    )
    return *restore(spec, prepared, y, h_n), restore_states(spec, prepared, after)


def _prepared(
    spec: RNNSpec, weight: Tensor, packed: PackedSequence, hx: Any
) -> tuple[Prepared, States]:
    """Check packed arguments without their values, and the states that the call starts from."""
    data, sizes = packed.data, packed.batch_sizes
    batch, states = check_packed(spec, weight, packed, hx)
    if batch is None:
        count, features = spec.num_layers * spec.num_directions, spec.layer(0).state_sizes
        states = tuple(
            torch.ops.rnnjit.zero_states(data.new_empty(0), sizes, count, list(features))
        )
        batch = states[0].shape[1]
    sizes = torch.ops.rnnjit.batch_sizes(sizes, data.shape[0], batch)
    rows = Rows(sizes.shape[0], batch, data.shape[0], sizes)
    prepared = Prepared(data.contiguous(), states, rows, packed, True)
    return prepared, initial_states(spec, prepared)

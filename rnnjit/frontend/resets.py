"""Resets inside sequences: before the steps where `reset` is True, a sequence starts anew.

The segments between resets are independent sequences (`rnnjit.execution.stretches`), all of them
together one packed batch, which every backend accepts. Each starts from zeros, or from the states
that `reset_to` has for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from rnnjit.backend import States
from rnnjit.execution.stack import dense_output
from rnnjit.execution.stretches import last_states, states_before, stretches
from rnnjit.runtime.torch_private import any_autocast
from rnnjit.spec import RNNSpec, Rows


class Outcome(NamedTuple):
    """The result of a call.

    Attributes:
        y: the outputs, in the form of the input, or the rows `[N, D*P]` of a packed batch.
        h_n: each state `[L*D, B, P or H]`, or `[L*D, P or H]` if unbatched.
        states: for each layer every state of every step, in the form of y; empty if not wanted.
    """

    y: Tensor
    h_n: States
    states: tuple[States, ...] = ()


Run = Callable[[PackedSequence, States], Outcome]


def check(x: Any, reset: Any) -> None:
    """Check `reset` against a valid input.

    Raises:
        TypeError: `reset` is not a dense boolean Tensor, or x is packed.
        ValueError: the shape of `reset` is not that of x without its last dimension.
        RuntimeError: `reset` is on another device.
    """
    if isinstance(x, PackedSequence):
        raise TypeError("reset needs dense input, got a PackedSequence: pack the stretches instead")
    if not isinstance(reset, Tensor) or reset.dtype is not torch.bool:
        found = reset.dtype if isinstance(reset, Tensor) else type(reset).__name__
        raise TypeError(f"reset must be a boolean Tensor, got {found}")
    _check_dense("reset", reset)
    if reset.shape != x.shape[:-1]:
        raise ValueError(
            f"reset must have the shape of input without its features, {list(x.shape[:-1])}, "
            f"got {list(reset.shape)}"
        )
    if reset.device != x.device:
        raise RuntimeError(f"reset is on {reset.device} but the input is on {x.device}")


def starting_states(spec: RNNSpec, x: Tensor, reset_to: Any) -> States | None:
    """Check `reset_to` against a valid dense input, and give all its states one form.

    Args:
        spec: the configuration of the module.
        x: `[T, B, I]`, `[B, T, I]` if batch_first, or `[T, I]`.
        reset_to: a tensor, a tuple or list of them if the cell has several states, or None.

    Returns:
        Each state `[L, T, B, D, P or H]`, or `[L, D, P or H]` where one vector serves every reset.

    Raises:
        TypeError: it is not a Tensor, or not a tuple or list of dense Tensors.
        ValueError: it has a wrong number of states, or one has a wrong shape.
        RuntimeError: it has another dtype or is on another device than x.
    """
    if reset_to is None:
        return None
    names = spec.cell.states
    given = (reset_to,) if len(names) == 1 else reset_to
    if not isinstance(given, (tuple, list)):
        wanted = f"a tuple of {len(names)} states ({', '.join(names)})"
        raise TypeError(f"reset_to must be {wanted}, got {type(reset_to).__name__}")
    if len(given) != len(names):
        raise ValueError(
            f"reset_to must have {len(names)} states ({', '.join(names)}), got {len(given)}"
        )
    found = []
    for index, (state, size) in enumerate(zip(given, spec.layer(0).state_sizes, strict=True)):
        name = "reset_to" if len(names) == 1 else f"reset_to[{index}]"
        found.append(_starting_state(name, spec, x, state, size))
    return tuple(found)


def _is_among(state: Tensor, shapes: Sequence[tuple[int, ...]]) -> bool:
    """Whether a state has one of these shapes.

    Sizes of shapes of another length are not compared: a graph would be bound to the outcome.
    """
    return any(len(shape) == state.dim() and shape == tuple(state.shape) for shape in shapes)


def _starting_state(name: str, spec: RNNSpec, x: Tensor, state: Any, size: int) -> Tensor:
    """Check one state of `reset_to` and give it the form of `starting_states`."""
    if not isinstance(state, Tensor):
        raise TypeError(f"{name} must be a Tensor, got {type(state).__name__}")
    _check_dense(name, state)
    layers, directions, steps = spec.num_layers, spec.num_directions, x.shape[:-1]
    shapes = [(layers, *steps, directions * size), (layers, directions * size)]
    shorter = [shape[1:] for shape in shapes] if layers == 1 else []
    if not _is_among(state, (*shapes, *shorter)):
        shown = " or ".join(str(list(shape)) for shape in (*shapes, *shorter))
        raise ValueError(
            f"{name} must have shape {shown} (num_layers, the shape of input without its features, "
            f"num_directions * features; or without the steps), got {list(state.shape)}"
        )
    if state.dtype is not x.dtype and not any_autocast():
        raise RuntimeError(f"{name} is {state.dtype} but the input is {x.dtype}")
    if state.device != x.device:
        raise RuntimeError(f"{name} is on {state.device} but the input is on {x.device}")
    if _is_among(state, shorter):
        state = state.unsqueeze(0)
    found: Tensor = state.view(*state.shape[:-1], directions, size)
    if found.dim() == 3:
        return found
    if len(steps) == 1:
        return found.unsqueeze(2)
    return found.transpose(1, 2) if spec.batch_first else found


def _check_dense(name: str, tensor: Tensor) -> None:
    if tensor.layout is not torch.strided or tensor.is_nested:
        kind = "a nested one" if tensor.is_nested else f"one of layout {tensor.layout}"
        raise TypeError(f"{name} must be a dense Tensor, got {kind}")


def time_major(spec: RNNSpec, reset: Tensor) -> Tensor:
    """The mask as `[T, B]`, in whatever form the input has."""
    if reset.dim() == 1:
        return reset.unsqueeze(1)
    return reset.transpose(0, 1) if spec.batch_first else reset


def is_single_step(spec: RNNSpec, x: Tensor) -> bool:
    """Whether a call is one step of a batch in one direction, whose states `replaced` gives."""
    return x.dim() == 3 and spec.num_directions == 1 and x.shape[bool(spec.batch_first)] == 1


def replaced(
    spec: RNNSpec, x: Tensor, hx: States | None, reset: Tensor, starts: States | None
) -> States:
    """The states before a single step: a reset replaces them, and nothing has to be packed.

    Args and form of the states as of `run`.
    """
    mask = time_major(spec, reset).view(1, -1, 1)
    if hx is None:
        hx = tuple([x.new_zeros(shape) for shape in spec.state_shapes(mask.shape[1])])
    if starts is None:
        return tuple([torch.where(mask, 0, state) for state in hx])
    anew = [start[:, 0, :, 0] if start.dim() == 5 else start for start in starts]
    return tuple([torch.where(mask, a, state) for a, state in zip(anew, hx, strict=True)])


def run(
    spec: RNNSpec,
    x: Tensor,
    hx: States | None,
    reset: Tensor,
    starts: States | None,
    forward: Run,
) -> Outcome:
    """Run a dense call with resets as a packed call without resets.

    Args:
        spec: the configuration of the module.
        x: `[T, B, I]`, `[B, T, I]` if batch_first, or `[T, I]`, of at least one row.
        hx: each state `[L*D, B, P or H]`, or None.
        reset: boolean, of the shape of x without its last dimension.
        starts: what `starting_states` returned: where segments start, or None for zeros.
        forward: the module on packed input, with states.

    Returns:
        The results, of the same shapes as without resets. The backward direction starts each
        segment at its last step: from `hx` if that is the last step of the sequence, else from the
        state that the reset after it has in `starts`.
    """
    batched, reset = x.dim() == 3, time_major(spec, reset)
    if not batched:
        x = x.unsqueeze(1)
    elif spec.batch_first:
        x = x.transpose(0, 1)
    T, B, _ = x.shape
    parts, directions = stretches(reset), spec.num_directions
    packed = PackedSequence(parts.packed(x.flatten(0, 1)), parts.batch_sizes)
    if hx is None:
        hx = tuple([x.new_zeros(shape) for shape in spec.state_shapes(B)])
    found = forward(packed, states_before(parts, directions, hx, starts))

    def restored(rows: Tensor) -> Tensor:
        rows = parts.dense(rows)
        if not batched:
            return rows
        return dense_output(rows, Rows(T, B, T * B), bool(spec.batch_first))

    h_n = tuple([last_states(parts, directions, state) for state in found.h_n])
    if not batched:
        h_n = tuple([state.squeeze(1) for state in h_n])
    states = tuple([tuple([restored(state) for state in layer]) for layer in found.states])
    return Outcome(restored(found.y), h_n, states)

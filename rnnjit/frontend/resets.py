"""Resets inside sequences: before the steps where `reset` is True, a sequence starts anew.

No state passes a reset, so the segments between resets ("stretches" in the code) are independent
sequences. All of them together form one packed batch, which every backend accepts. Each starts from
zeros, or from the states that `reset_to` has for it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from rnnjit.backend import States
from rnnjit.execution.stack import dense_output
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


class Stretches(NamedTuple):
    """The S segments between resets, the longest first.

    Attributes:
        rows: int64 `[N]`, for each packed row its index among the `T*B` dense rows.
        batch_sizes: int64 `[longest]` on the CPU, as in a PackedSequence.
        sequence: int64 `[S]`, the sequence that each segment belongs to.
        start: int64 `[S]`, the first step of each segment.
        stop: int64 `[S]`, the step after its last.
        first: boolean `[S]`, whether a segment starts from the caller's state.
        ending: int64 `[B]`, for each sequence the segment that holds its last step.
        beginning: int64 `[B]`, for each sequence the segment that holds its first step.
    """

    rows: Tensor
    batch_sizes: Tensor
    sequence: Tensor
    start: Tensor
    stop: Tensor
    first: Tensor
    ending: Tensor
    beginning: Tensor


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


def _starting_state(name: str, spec: RNNSpec, x: Tensor, state: Any, size: int) -> Tensor:
    """Check one state of `reset_to` and give it the form of `starting_states`."""
    if not isinstance(state, Tensor):
        raise TypeError(f"{name} must be a Tensor, got {type(state).__name__}")
    _check_dense(name, state)
    layers, directions, steps = spec.num_layers, spec.num_directions, x.shape[:-1]
    shapes = [(layers, *steps, directions * size), (layers, directions * size)]
    shorter = [shape[1:] for shape in shapes] if layers == 1 else []
    if state.shape not in (*shapes, *shorter):
        shown = " or ".join(str(list(shape)) for shape in (*shapes, *shorter))
        raise ValueError(
            f"{name} must have shape {shown} (num_layers, the shape of input without its features, "
            f"num_directions * features; or without the steps), got {list(state.shape)}"
        )
    if state.dtype is not x.dtype and not any_autocast():
        raise RuntimeError(f"{name} is {state.dtype} but the input is {x.dtype}")
    if state.device != x.device:
        raise RuntimeError(f"{name} is on {state.device} but the input is on {x.device}")
    if state.shape in shorter:
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
    batched = x.dim() == 3
    if not batched:
        x, reset = x.unsqueeze(1), reset.unsqueeze(1)
    elif spec.batch_first:
        x, reset = x.transpose(0, 1), reset.transpose(0, 1)
    T, B, _ = x.shape
    parts = stretches(reset)
    packed = PackedSequence(x.flatten(0, 1).index_select(0, parts.rows), parts.batch_sizes)
    found = forward(packed, _initial(spec, x, hx, starts, parts))
    order = torch.empty_like(parts.rows).scatter_(0, parts.rows, _counting(parts.rows))

    def restored(rows: Tensor) -> Tensor:
        rows = rows.index_select(0, order)
        if not batched:
            return rows
        return dense_output(rows, Rows(T, B, T * B), bool(spec.batch_first))

    h_n = tuple([_last(spec, state, parts) for state in found.h_n])
    if not batched:
        h_n = tuple([state.squeeze(1) for state in h_n])
    states = tuple([tuple([restored(state) for state in layer]) for layer in found.states])
    return Outcome(restored(found.y), h_n, states)


def stretches(reset: Tensor) -> Stretches:
    """Cut B >= 1 sequences of T >= 1 steps at the True elements of `reset`, boolean `[T, B]`."""
    T, B = reset.shape
    cuts = reset.clone()
    cuts[0] = True
    # Ordered by sequence, then by step.
    sequence, start = cuts.t().nonzero(as_tuple=True)
    following = torch.cat([start[1:], start.new_zeros(1)])
    stop = torch.where(following > 0, following, T)
    order = (stop - start).argsort(descending=True, stable=True)
    sequence, start, stop = sequence[order], start[order], stop[order]
    length = stop - start
    steps = _counting(reset.new_empty(int(length[0]), dtype=torch.int64))
    present = length > steps[:, None]
    rows = ((start + steps[:, None]) * B + sequence)[present]
    place = _counting(sequence)
    ending, beginning = torch.empty_like(sequence[:B]), torch.empty_like(sequence[:B])
    ending[sequence[stop == T]] = place[stop == T]
    beginning[sequence[start == 0]] = place[start == 0]
    first = (start == 0) & ~reset[0][sequence]
    sizes = present.sum(1).cpu()
    return Stretches(rows, sizes, sequence, start, stop, first, ending, beginning)


def _initial(
    spec: RNNSpec, x: Tensor, hx: States | None, starts: States | None, parts: Stretches
) -> States:
    """The states `[L*D, S, P or H]` that the segments start from."""
    shapes = spec.state_shapes(len(parts.sequence))
    if hx is None and starts is None:
        return tuple([x.new_zeros(shape) for shape in shapes])
    goes_on = parts.first.expand(spec.num_layers * spec.num_directions, -1)
    if spec.num_directions == 2:
        last = torch.zeros_like(parts.first)
        last[parts.ending] = True
        goes_on = goes_on.clone()
        goes_on[1::2] = last
    which, found = goes_on.unsqueeze(2), []
    for index in range(len(shapes)):
        on = 0 if hx is None else hx[index].index_select(1, parts.sequence)
        anew = 0 if starts is None else _anew(starts[index], parts)
        found.append(torch.where(which, on, anew))
    return tuple(found)


def _anew(start: Tensor, parts: Stretches) -> Tensor:
    """The states `[L*D, S, P or H]` of segments that start at a reset, from `starting_states`."""
    if start.dim() == 3:
        return start.unsqueeze(2).expand(-1, -1, len(parts.sequence), -1).flatten(0, 1)
    # The backward direction enters a segment over the reset behind it. There is none behind the
    # last segment, which goes on from hx.
    steps = parts.start, parts.stop.clamp(max=start.shape[1] - 1)
    directions = [start[:, steps[d], parts.sequence, d] for d in range(start.shape[3])]
    return torch.stack(directions, 1).flatten(0, 1)


def _last(spec: RNNSpec, state: Tensor, parts: Stretches) -> Tensor:
    """A state of h_n `[L*D, B, P or H]`, taken from the segment in which each direction ends."""
    forward = state.index_select(1, parts.ending)
    if spec.num_directions == 1:
        return forward
    backward = state.index_select(1, parts.beginning)
    directions = torch.arange(state.shape[0], dtype=torch.int64, device=state.device) % 2
    return torch.where((directions == 1)[:, None, None], backward, forward)


def _counting(like: Tensor) -> Tensor:
    return torch.arange(len(like), dtype=torch.int64, device=like.device)

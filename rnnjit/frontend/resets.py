"""Resets inside sequences: the state is zeroed before the steps where `reset` is True.

No state passes a reset, so the segments between resets ("stretches" in the code) are independent
sequences. All of them together form one packed batch, which every backend accepts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from rnnjit.backend import States
from rnnjit.execution.stack import dense_output
from rnnjit.spec import RNNSpec, Rows

Run = Callable[[PackedSequence, States], tuple[PackedSequence, States]]


class Stretches(NamedTuple):
    """The S segments between resets, the longest first.

    Attributes:
        rows: int64 `[N]`, for each packed row its index among the `T*B` dense rows.
        batch_sizes: int64 `[longest]` on the CPU, as in a PackedSequence.
        sequence: int64 `[S]`, the sequence that each segment belongs to.
        first: boolean `[S]`, whether a segment starts from the caller's state.
        ending: int64 `[B]`, for each sequence the segment that holds its last step.
        beginning: int64 `[B]`, for each sequence the segment that holds its first step.
    """

    rows: Tensor
    batch_sizes: Tensor
    sequence: Tensor
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
    if reset.layout is not torch.strided or reset.is_nested:
        kind = "a nested one" if reset.is_nested else f"one of layout {reset.layout}"
        raise TypeError(f"reset must be a dense Tensor, got {kind}")
    if reset.shape != x.shape[:-1]:
        raise ValueError(
            f"reset must have the shape of input without its features, {list(x.shape[:-1])}, "
            f"got {list(reset.shape)}"
        )
    if reset.device != x.device:
        raise RuntimeError(f"reset is on {reset.device} but the input is on {x.device}")


def run(
    spec: RNNSpec, x: Tensor, hx: States | None, reset: Tensor, forward: Run
) -> tuple[Tensor, States]:
    """Run a dense call with resets as a packed call without resets.

    Args:
        spec: the configuration of the module.
        x: `[T, B, I]`, `[B, T, I]` if batch_first, or `[T, I]`.
        hx: each state `[L*D, B, P or H]`, or None.
        reset: boolean, of the shape of x without its last dimension; at least one element is True.
        forward: the module on packed input, with states.

    Returns:
        y and h_n, of the same shapes as without resets. The backward direction starts each segment
        at its last step: from `hx` if that is the last step of the sequence, else from zeros.
    """
    batched = x.dim() == 3
    if not batched:
        x, reset = x.unsqueeze(1), reset.unsqueeze(1)
    elif spec.batch_first:
        x, reset = x.transpose(0, 1), reset.transpose(0, 1)
    T, B, _ = x.shape
    parts = stretches(reset)
    packed = PackedSequence(x.flatten(0, 1).index_select(0, parts.rows), parts.batch_sizes)
    output, states = forward(packed, _initial(spec, x, hx, parts))
    y = torch.empty_like(parts.rows).scatter_(0, parts.rows, _counting(parts.rows))
    y = output.data.index_select(0, y)
    h_n = tuple([_last(spec, state, parts) for state in states])
    if not batched:
        return y, tuple([state.squeeze(1) for state in h_n])
    return dense_output(y, Rows(T, B, T * B), bool(spec.batch_first)), h_n


def stretches(reset: Tensor) -> Stretches:
    """Cut B >= 1 sequences of T >= 1 steps at the True elements of `reset`, boolean `[T, B]`."""
    T, B = reset.shape
    cuts = reset.clone()
    cuts[0] = True
    # Ordered by sequence, then by step.
    sequence, start = cuts.t().nonzero(as_tuple=True)
    stop = torch.cat([start[1:], start.new_zeros(1)])
    length = torch.where(stop > 0, stop, T) - start
    order = length.argsort(descending=True, stable=True)
    sequence, start, length = sequence[order], start[order], length[order]
    steps = _counting(reset.new_empty(int(length[0]), dtype=torch.int64))
    present = length > steps[:, None]
    rows = ((start + steps[:, None]) * B + sequence)[present]
    last = start + length == T
    place = _counting(sequence)
    ending, beginning = torch.empty_like(sequence[:B]), torch.empty_like(sequence[:B])
    ending[sequence[last]] = place[last]
    beginning[sequence[start == 0]] = place[start == 0]
    first = (start == 0) & ~reset[0][sequence]
    return Stretches(rows, present.sum(1).cpu(), sequence, first, ending, beginning)


def _initial(spec: RNNSpec, x: Tensor, hx: States | None, parts: Stretches) -> States:
    """The states `[L*D, S, P or H]` that the segments start from."""
    if hx is None:
        shapes = spec.state_shapes(len(parts.sequence))
        return tuple([x.new_zeros(shape) for shape in shapes])
    goes_on = parts.first.expand(spec.num_layers * spec.num_directions, -1)
    if spec.num_directions == 2:
        last = torch.zeros_like(parts.first)
        last[parts.ending] = True
        goes_on = goes_on.clone()
        goes_on[1::2] = last
    which = goes_on.unsqueeze(2)
    return tuple([torch.where(which, state.index_select(1, parts.sequence), 0) for state in hx])


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

"""Cuts sequences where they are reset, into segments ("stretches") that form one packed batch.

No state passes a reset, so the segments are independent sequences. Here are the cut, what the
segments start from, which of their last states are the caller's, and the gradients of both.

L is the number of layers, D that of directions, S that of segments. A segment of the backward
direction starts at its last step. `starts` holds, for each state, what a reset puts in its place:
`[L, T, B, D, P or H]`, or `[L, D, P or H]` where one vector serves every reset.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from rnnjit.backend import States


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

    def packed(self, rows: Tensor) -> Tensor:
        """Rows `[N, F]` of the segments, from the dense ones."""
        return rows.index_select(0, self.rows)

    def dense(self, rows: Tensor) -> Tensor:
        """Dense rows `[N, F]`, from those of the segments."""
        order = torch.empty_like(self.rows).scatter_(0, self.rows, _counting(self.rows))
        return rows.index_select(0, order)

    def goes_on(self, directions: int) -> Tensor:
        """Whether each direction of each segment starts from the caller's state: `[D, S, 1]`."""
        ways = [self.first]
        if directions == 2:
            last = torch.zeros_like(self.first)
            last[self.ending] = True
            ways.append(last)
        return torch.stack(ways).unsqueeze(2)


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


def states_before(parts: Stretches, directions: int, hx: States, starts: States | None) -> States:
    """The states `[L*D, S, P or H]` that the segments start from.

    Args:
        parts: the segments.
        directions: D.
        hx: the caller's states, each `[L*D, B, P or H]`.
        starts: what a reset puts in their place, or None for zeros.
    """
    found = []
    for index, state in enumerate(hx):
        on = state.index_select(1, parts.sequence)
        anew = 0 if starts is None else _anew(starts[index], parts)
        which = parts.goes_on(directions).repeat(state.shape[0] // directions, 1, 1)
        found.append(torch.where(which, on, anew))
    return tuple(found)


def gradient_of_hx(parts: Stretches, directions: int, grad: Tensor, batch: int) -> Tensor:
    """The gradient of a state of hx, `[D, B, P or H]`, from that of `states_before` of a layer."""
    passed = torch.where(parts.goes_on(directions), grad, 0)
    found = grad.new_zeros(grad.shape[0], batch, grad.shape[2])
    return found.index_add_(1, parts.sequence, passed)


def gradient_of_start(parts: Stretches, directions: int, grad: Tensor, start: Tensor) -> Tensor:
    """The gradient of a state of `starts`, from that of `states_before` of a layer.

    Args:
        parts: the segments.
        directions: D.
        grad: `[D, S, P or H]`.
        start: the state, of the layer alone: `[T, B, D, P or H]` or `[D, P or H]`.
    """
    passed = torch.where(parts.goes_on(directions), 0, grad)
    if start.dim() == 2:
        return passed.sum(1)
    found = start.new_zeros(start.shape)
    for d, steps in enumerate(_steps(parts, start.shape[0])[:directions]):
        place = (steps, parts.sequence)
        found[:, :, d].index_put_(place, passed[d], accumulate=True)
    return found


def last_states(parts: Stretches, directions: int, state: Tensor) -> Tensor:
    """A state of h_n `[L*D, B, P or H]`, taken from the segment in which each direction ends."""
    forward = state.index_select(1, parts.ending)
    if directions == 1:
        return forward
    backward = state.index_select(1, parts.beginning)
    ways = torch.arange(state.shape[0], dtype=torch.int64, device=state.device) % 2
    return torch.where((ways == 1)[:, None, None], backward, forward)


def gradient_of_last(parts: Stretches, grad: Tensor) -> Tensor:
    """The gradient `[D, S, P or H]` of the segments' last states, from that of `last_states`."""
    found = grad.new_zeros(grad.shape[0], len(parts.sequence), grad.shape[2])
    for d, place in enumerate((parts.ending, parts.beginning)[: grad.shape[0]]):
        found[d].index_copy_(0, place, grad[d])
    return found


def _anew(start: Tensor, parts: Stretches) -> Tensor:
    """The states `[L*D, S, P or H]` of segments that start at a reset, from a state of `starts`."""
    if start.dim() == 3:
        return start.unsqueeze(2).expand(-1, -1, len(parts.sequence), -1).flatten(0, 1)
    steps = _steps(parts, start.shape[1])
    directions = [start[:, steps[d], parts.sequence, d] for d in range(start.shape[3])]
    return torch.stack(directions, 1).flatten(0, 1)


def _steps(parts: Stretches, count: int) -> tuple[Tensor, Tensor]:
    """The step of the reset over which each direction enters each segment, of `count` steps.

    The backward direction enters a segment over the reset behind it. There is none behind the last
    segment, which goes on from hx.
    """
    return parts.start, parts.stop.clamp(max=count - 1)


def _counting(like: Tensor) -> Tensor:
    return torch.arange(len(like), dtype=torch.int64, device=like.device)

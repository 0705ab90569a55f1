"""Runs a user's cells step by step, in plain Python: what compiled calls are compared with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rnnjit.backend import States
from rnnjit.spec import RNNSpec, Rows


class LoopResult(NamedTuple):
    """The result of `run_loop`.

    Attributes:
        y: `[N, D*H]`.
        h_n: each state `[L*D, B, H]`.
        states: for each layer its states after every step, each `[N, D*H]`; empty if not wanted.
    """

    y: Tensor
    h_n: States
    states: tuple[States, ...]


class Resets(NamedTuple):
    """Where sequences start anew.

    Attributes:
        mask: boolean `[T, B]`.
        starts: for each state what takes its place, `[L, T, B, D, H]` or `[L, D, H]`; None for
            zeros.
    """

    mask: Tensor
    starts: States | None

    @property
    def recorded(self) -> bool:
        """Whether gradients reach `starts`: results must depend on it, whatever the mask."""
        return self.starts is not None and any(each.requires_grad for each in self.starts)


def run_loop(
    cells: Sequence[Any],
    spec: RNNSpec,
    rows: Rows,
    x: Tensor,
    hx: States,
    training: bool,
    resets: Resets | None = None,
    *,
    every: bool = False,
) -> LoopResult:
    """Run every layer and direction, one step after another, with dropout between layers.

    Args:
        cells: one for each direction of each layer.
        spec: the configuration of the stack; its cell has the names of the states.
        rows: how the rows of `x` are laid over time; dense if there are resets.
        x: `[N, I]`.
        hx: each state `[L*D, B, H]`.
        training: whether dropout is on.
        resets: where sequences start anew, or None.
        every: whether to return the states of every step.

    Raises:
        TypeError: a cell returns something other than tensors, or not as many as its states or
            one more.
        RuntimeError: a result of a cell is not `[b, H]`.
    """
    D = spec.num_directions
    finals: list[States] = []
    after: list[States] = []
    for layer in range(spec.num_layers):
        ways = []
        for d in range(D):
            index = layer * D + d
            own = tuple([state[index] for state in hx])
            anew = None if resets is None else _of_direction(resets, layer, d)
            ways.append(_run_direction(cells[index], spec, rows, x, own, anew, reverse=d == 1))
        x = torch.cat([way.out for way in ways], 1)
        if every:
            after.append(_side_by_side([way.steps for way in ways]))
        finals += [way.last for way in ways]
        if spec.dropout and training and layer < spec.num_layers - 1:
            x = torch.dropout(x, spec.dropout, training)
    return LoopResult(x, tuple(map(torch.stack, zip(*finals, strict=True))), tuple(after))


class _Way(NamedTuple):
    """One direction.

    Attributes:
        out: its outputs `[N, H]`.
        steps: its states after each step, each `[b, H]`.
        last: its last states, each `[B, H]`.
    """

    out: Tensor
    steps: list[States]
    last: States


def _side_by_side(ways: list[list[States]]) -> States:
    """The states of all steps, each `[N, D*H]`, from those of each direction."""
    columns = [
        [torch.cat(state) for state in zip(*steps, strict=True)]  # of one direction
        for steps in ways
    ]
    return tuple([torch.cat(state, 1) for state in zip(*columns, strict=True)])


class _Anew(NamedTuple):
    """`Resets` of one direction; starts are `[T, B, H]` or `[H]`."""

    mask: Tensor
    starts: States | None

    def states(self, step: int, states: States) -> States:
        """The states with which a step starts that the reset `step` precedes."""
        where = self.mask[step].unsqueeze(1)
        found = []
        for index, state in enumerate(states):
            start: Tensor | float = 0.0
            if self.starts is not None:
                given = self.starts[index]
                start = given if given.dim() == 1 else given[step]
            found.append(torch.where(where, start, state))
        return tuple(found)


def _of_direction(resets: Resets, layer: int, d: int) -> _Anew:
    starts = resets.starts
    own = starts and tuple([each[layer].select(-2, d) for each in starts])
    return _Anew(resets.mask, own)


def _run_direction(
    cell: Any,
    spec: RNNSpec,
    rows: Rows,
    x: Tensor,
    hx: States,
    resets: _Anew | None,
    *,
    reverse: bool,
) -> _Way:
    """Run one direction of one layer; `hx` are states `[B, H]`."""
    sizes = rows.sizes
    steps = torch.split(x, sizes)
    count, T, H = len(hx), rows.T, spec.hidden_size
    outputs: list[Tensor] = [x] * T
    states_after: list[States] = [hx] * T
    ended: list[States] = []
    states = hx if not reverse else tuple([state[: sizes[-1]] for state in hx])
    for t in reversed(range(T)) if reverse else range(T):
        size, held = sizes[t], states[0].shape[0]
        if size < held:
            ended.append(tuple([state[size:] for state in states]))
            states = tuple([state[:size] for state in states])
        elif size > held:
            begun = [each[held:size] for each in hx]
            states = tuple([torch.cat(pair) for pair in zip(states, begun, strict=True)])
        over = t + reverse  # the reset that the direction has come over
        if resets is not None and over < T:
            states = resets.states(over, states)
        outputs[t], states = results_of(cell, cell(steps[t], *states), count, (size, H))
        states_after[t] = states
    if ended:
        parts = zip(states, *reversed(ended), strict=True)
        states = tuple([torch.cat(part) for part in parts])
    return _Way(torch.cat(outputs), states_after, states)


def results_of(cell: Any, result: Any, count: int, shape: tuple[int, int]) -> tuple[Tensor, States]:
    """The output and the new states that a cell's `forward` returned.

    Args:
        cell: the cell.
        result: what it returned: the output and all states, which may be a tuple; or as many as
            states, of which the first is the output, too; or a tensor for one state.
        count: the number of its states.
        shape: of each result, `[b, H]`.

    Raises:
        TypeError: it is none of these.
        RuntimeError: a tensor has another shape.
    """
    found = (result,) if isinstance(result, Tensor) else result
    if isinstance(found, (tuple, list)):  # h, (h, c) as well
        found = [
            part
            for each in found
            for part in (each if isinstance(each, (tuple, list)) else (each,))
        ]
    if not isinstance(found, (tuple, list)) or len(found) not in (count, count + 1):
        got = f"{len(found)} results" if isinstance(found, (tuple, list)) else type(found).__name__
        raise TypeError(
            f"{type(cell).__name__}.forward must return the output and {count} new states, or the "
            f"states alone if the first is the output, got {got}"
        )
    for index, tensor in enumerate(found):
        if not isinstance(tensor, Tensor):
            raise TypeError(
                f"{type(cell).__name__}.forward must return tensors, got "
                f"{type(tensor).__name__} as result {index}"
            )
        if tensor.shape != shape:
            raise RuntimeError(
                f"{type(cell).__name__}.forward must return tensors {list(shape)}, like its "
                f"states, got {list(tensor.shape)} as result {index}"
            )
    return found[0], tuple(found[-count:])

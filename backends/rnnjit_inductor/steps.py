"""Steps that are not compiled: products and the cell's pointwise operations, in place.

    forward    z_t = z_t + h_{t-1} W_hh^T,  then the cell's step,  h_t = out W_hr^T
    backward   g = g + grad_y_t,  (dz_t, d_t) = the cell's backward step of g W_hr,
               g = d_t + dz_t W_hh

g are the gradients of the states after step t, and d_t the parts of the gradients of the states
before it that bypass the products with the weights. Without a projection, W_hr, h_t is out. Both
passes walk over packed rows in either direction; if the next step has more rows, sequences begin or
end there. Where nothing is multiplied by W_hh, its terms are not there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from rnnjit.ir import CellSpec
from rnnjit.recurrence import Backward, Forward, Recurrence, dz_blocks
from rnnjit_inductor.direction import (
    BackwardRows,
    ForwardRows,
    ForwardWeights,
    backward_rows,
    first_gradients,
    fixed_values,
    forward_rows,
    forward_weights,
    gates_of,
)
from rnnjit_inductor.pointwise import Pointwise
from rnnjit_inductor.programs import backward_of, step_of


class Steps(Recurrence):
    """Recurrences step by step."""

    def forward(self, call: Forward) -> None:
        """All steps of each direction."""
        for d in range(call.layer.num_directions):
            hx, h_n = ([state[d] for state in states] for states in (call.hx, call.h_n))
            walk_forward(call, d, forward_rows(call, d), call.rows.sizes, hx, h_n)

    def backward(self, call: Backward) -> None:
        """All steps of each direction."""
        for d in range(call.layer.num_directions):
            walk_backward(
                call, d, backward_rows(call, d), call.rows.sizes, first_gradients(call, d)
            )


def walk_forward(
    call: Forward,
    direction: int,
    given: ForwardRows,
    sizes: Sequence[int],
    hx: Sequence[Tensor],
    h_n: Sequence[Tensor],
) -> None:
    """Write the rows' states and saved values, and the last states to h_n.

    Args:
        call: the layer and its weights.
        direction: 0, or 1 to walk from the last step to the first.
        given: the rows to walk over; z holds x W_ih^T + b.
        sizes: how many there are of each step.
        hx: each state `[B, P or H]`, the initial ones.
        h_n: written; may be `hx`.
    """
    z, inputs, y, out, states, saved = given
    cell, H, weights = call.layer.cell, call.layer.hidden_size, forward_weights(call, direction)
    sums, program = _Sums(cell, weights, H), step_of(cell, bool(saved))
    fixed, from_last = fixed_values(call, program, direction), direction == 1
    step = Pointwise(program.rows, z, len(cell.states) + len(saved))
    rooms = _Rooms(cell, given, H, max(sizes, default=0), weights.w_hr is not None)
    before, held, turn = list(hx), 0, 0
    optional = () if out is None else (out,)
    for now, h, *own, size in _walk(sizes, from_last, z, y, *inputs, *optional, *states, *saved):
        of_rows, own = own[: len(inputs)], own[len(inputs) :]
        previous = [state[:size] for state in before]
        if held and size > held:
            previous = [
                torch.cat([state, first[held:size]])
                for state, first in zip(before, hx, strict=True)
            ]
        elif size < held:
            for last, state in zip(h_n, before, strict=True):
                last[size:held].copy_(state[size:held])
        into = rooms.of_step(h, own, size, turn)
        step([*fixed, *sums(now, previous[0]), *previous, *of_rows], into)
        if weights.w_hr is not None:
            torch.mm(into[0], weights.w_hr, out=h)
        before, held, turn = [h, *into[1 : len(hx)]], size, 1 - turn
    for last, state in zip(h_n, before, strict=True):
        last[:held].copy_(state[:held])


class _Sums:
    """The accumulators of a step, from the rows' zx and the first state before.

    Args:
        cell: what a step computes.
        weights: what the state is multiplied by.
        features: H.
    """

    def __init__(self, cell: CellSpec, weights: ForwardWeights, features: int) -> None:
        self._weights, self._product = weights, cell.has_product
        self._accumulators, self._gates = cell.accumulators, len(cell.gates)
        self._together = len(cell.accumulators) == len(cell.gates)
        self._runs: list[slice] = []
        for gate in (a.gate for a in cell.accumulators if a.part == "sum"):
            start = gate * features
            if self._runs and self._runs[-1].stop == start:
                start = self._runs.pop().start
            self._runs.append(slice(start, (gate + 1) * features))

    def __call__(self, z: Tensor, h: Tensor) -> list[Tensor]:
        """`[size, H]` of each accumulator; the sums are written to z."""
        w_hh, b_hh, _ = self._weights
        if self._together:
            if self._product:
                z.addmm_(h, w_hh)
            return gates_of(z, self._gates)
        hidden = h @ w_hh if b_hh is None else torch.addmm(b_hh, h, w_hh)
        for run in self._runs:
            z[:, run] += hidden[:, run]
        of_z, of_hidden = gates_of(z, self._gates), gates_of(hidden, self._gates)
        return [
            of_hidden[each.gate] if each.part == "hidden" else of_z[each.gate]
            for each in self._accumulators
        ]


class _Rooms:
    """Memory for what a step writes: the rows, or memory for one step if the rows have none.

    Args:
        cell: what a step computes.
        given: the rows.
        features: H.
        size: the most rows of a step.
        projected: whether outputs are projected.
    """

    def __init__(
        self, cell: CellSpec, given: ForwardRows, features: int, size: int, projected: bool
    ) -> None:
        self._projected, self._kept_out = projected, given.out is not None
        self._kept_states = bool(given.states)
        shape, others = (size, features), len(cell.states) - 1
        if projected and not self._kept_out:
            self._out = given.z.new_empty(shape)
        if others and not self._kept_states:
            # A step reads one half and writes the other.
            self._states = [[given.z.new_empty(shape) for _ in range(others)] for _ in range(2)]
        self._others = others

    def of_step(self, h: Tensor, own: list[Tensor], size: int, turn: int) -> list[Tensor]:
        """`[size, H]` of the output, each state but the first, and each saved value.

        Args:
            h: the step's rows of y.
            own: its rows of what else the walk writes.
            size: how many rows.
            turn: 0 and 1 in turn.
        """
        found, first = [h], 0
        if self._projected:
            found = [own[0] if self._kept_out else self._out[:size]]
            first = int(self._kept_out)
        if self._others and not self._kept_states:
            found += [each[:size] for each in self._states[turn]]
        return found + own[first:]


def walk_backward(
    call: Backward,
    direction: int,
    given: BackwardRows,
    sizes: Sequence[int],
    states: Sequence[Tensor],
) -> None:
    """Write the gradients of the rows, and to `states` those of the initial states.

    Args:
        call: the layer and its weights.
        direction: 0 to walk from the last step to the first, or 1.
        given: the rows to walk over.
        sizes: how many there are of each step.
        states: each `[B, P or H]`; on entry, the gradients of the last states.
    """
    cell, dz = call.layer.cell, given.dz
    w_hh, w_hr = call.w_hh[direction], call.w_hr[direction] if call.w_hr else None
    of_parameters, of_inputs = given.grad_parameters, given.grad_inputs
    program = backward_of(cell, of_parameters is not None, of_inputs is not None)
    fixed = fixed_values(call, program, direction)
    blocks = gates_of(dz, len(cell.accumulators))
    written = [blocks[block] for block in dz_blocks(cell)]
    written += [*(of_parameters or []), *(of_inputs or [])]
    # `out` is the first state, so the gradient of y is added to that of the state, in place.
    step = Pointwise(program.rows, dz, len(written), absent=["grad_out"])
    added = [
        (k, each) for k, each in enumerate([given.grad_y, *given.grad_states]) if each is not None
    ]
    first, last = len(given.read), len(given.read) + len(written)
    optional = [*(each for _, each in added), *([] if given.dh is None else [given.dh])]
    for own_dz, *own, size in _walk(sizes, direction == 0, dz, *given.read, *written, *optional):
        grads = [state[:size] for state in states]
        for (k, _), each in zip(added, own[last:], strict=False):
            grads[k] += each
        g = grads[0]
        of_output = g
        if w_hr is not None:
            own[-1].copy_(g)
            of_output = g @ w_hr
        given_grads = [*fixed, *own[:first], None, of_output, *grads[1:]]
        share, *shares = step(given_grads, own[first:last])
        # A share may be the gradient of another state, which is about to be overwritten.
        shares = [_apart_from(each, grads) for each in shares]
        _add_product(g, share, own_dz[:, : len(w_hh)], w_hh if cell.has_product else None)
        for grad, each in zip(grads[1:], shares, strict=True):
            if each is None:
                grad.zero_()
            else:
                grad.copy_(each)


def _add_product(g: Tensor, share: Tensor | None, dz: Tensor, w_hh: Tensor | None) -> None:
    """`g = share + dz W_hh`, without what there is not."""
    if w_hh is None:
        if share is None:
            g.zero_()
        elif share is not g:
            g.copy_(share)
    elif share is None:
        torch.mm(dz, w_hh, out=g)
    else:
        torch.addmm(share, dz, w_hh, out=g)


def _apart_from(value: Tensor | None, grads: Sequence[Tensor]) -> Tensor | None:
    """A value, or a copy of it if it is one of these tensors."""
    if value is None or all(value is not grad for grad in grads):
        return value
    return value.clone()


def _walk(sizes: Sequence[int], from_last: bool, *tensors: Tensor) -> Iterator[tuple[Any, ...]]:
    """The rows of each step in some tensors, and how many they are, in the order of a walk."""
    parts = {id(tensor): tensor.split_with_sizes(list(sizes)) for tensor in tensors}
    steps = zip(*(parts[id(tensor)] for tensor in tensors), sizes, strict=True)
    for step in reversed(list(steps)) if from_last else steps:
        if step[-1]:
            yield step

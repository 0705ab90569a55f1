"""Steps that are not compiled: a product and the cell's pointwise operations, in place.

    forward    z_t = z_t + h_{t-1} W_hh^T,  then the cell's step
    backward   g = g + grad_y_t,  (dz_t, d_t) = the cell's backward step of g,  g = d_t + dz_t W_hh

g is the gradient of h_t, and d_t the part of the gradient of h_{t-1} that bypasses the product.
Both passes walk over packed rows in either direction; if the next step has more rows, sequences
begin or end there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rnnjit.cells import Cell
from rnnjit.recurrence import Backward, Forward, Recurrence
from rnnjit.recurrence.rows import states_before
from rnnjit_inductor.pointwise import Pointwise, read_by_backward, step_of


class ForwardRows(NamedTuple):
    """A direction's rows in a forward walk.

    Attributes:
        z: `[N, G*H]`, overwritten.
        y: `[N, H]`, written; z itself for an Elman cell.
        saved: `[N, H]` for each saved value, written; empty if none is needed.
    """

    z: Tensor
    y: Tensor
    saved: tuple[Tensor, ...]

    @property
    def gates(self) -> list[Tensor]:
        """`[N, H]` of each gate."""
        return _gates(self.z, self.y.shape[1])

    def part(self, rows: slice) -> ForwardRows:
        """Some of the rows."""
        z = self.z[rows]
        y = z if self.y is self.z else self.y[rows]
        return ForwardRows(z, y, tuple(each[rows] for each in self.saved))


class BackwardRows(NamedTuple):
    """A direction's rows in a backward walk.

    Attributes:
        read: `[N, H]` of each input of the cell's backward program except the gradients.
        grad_y: `[N, H]`, or None for zeros.
        dz: `[N, G*H]`, written.
    """

    read: list[Tensor]
    grad_y: Tensor | None
    dz: Tensor

    def part(self, rows: slice) -> BackwardRows:
        """Some of the rows."""
        grad_y = None if self.grad_y is None else self.grad_y[rows]
        return BackwardRows([each[rows] for each in self.read], grad_y, self.dz[rows])


def forward_rows(call: Forward, direction: int) -> ForwardRows:
    """The rows of a direction."""
    H, G = call.layer.hidden_size, len(call.layer.cell.gates)
    own = slice(direction * H, (direction + 1) * H)
    z = call.z[:, own.start * G : own.stop * G]
    y = z if call.y is call.z else call.y[:, own]
    return ForwardRows(z, y, tuple(each[:, own] for each in call.saved))


def backward_rows(call: Backward, direction: int) -> BackwardRows:
    """The rows of a direction."""
    cell, H = call.layer.cell, call.layer.hidden_size
    own = slice(direction * H, (direction + 1) * H)

    def named(name: str) -> Tensor:
        if name == "out":
            return call.y[:, own]
        if name == cell.states[0]:
            y, h0 = call.y[:, own], call.hx[0][direction]
            return states_before(call.rows, call.starts, y, h0, direction)
        return call.saved[int(name.removeprefix("saved_"))][:, own]

    grad_y = None if call.grad_y is None else call.grad_y[:, own]
    G = len(cell.gates)
    dz = call.dz[:, own.start * G : own.stop * G]
    return BackwardRows(read_by_backward(cell, named), grad_y, dz)


class Steps(Recurrence):
    """Recurrences step by step."""

    def forward(self, call: Forward) -> None:
        """All steps of each direction."""
        cell, sizes = call.layer.cell, call.rows.sizes
        for d, w_hh in enumerate(call.w_hh):
            given = forward_rows(call, d)
            walk_forward(cell, given, sizes, d == 1, w_hh.t(), call.hx[0][d], call.h_n[0][d])

    def backward(self, call: Backward) -> None:
        """All steps of each direction."""
        cell, sizes, (grad_h_n,) = call.layer.cell, call.rows.sizes, call.grad_h_n
        for d, w_hh in enumerate(call.w_hh):
            state = call.grad_hx[0][d]
            if grad_h_n is None:
                state.zero_()
            else:
                state.copy_(grad_h_n[d])
            walk_backward(cell, backward_rows(call, d), sizes, d == 0, w_hh, state)


def walk_forward(
    cell: Cell,
    given: ForwardRows,
    sizes: Sequence[int],
    from_last: bool,
    w_t: Tensor,
    h0: Tensor,
    h_n: Tensor,
) -> None:
    """Write the rows' states and saved values, and the last states to h_n `[B, H]`.

    Args:
        cell: what a step computes.
        given: its z holds x W_ih^T + b.
        sizes: rows of each step.
        from_last: whether to walk from the last step to the first.
        w_t: `[H, G*H]`, W_hh transposed.
        h0: `[B, H]`, the initial states.
        h_n: written.
    """
    z, y, saved = given
    program = step_of(cell, bool(saved))
    step = Pointwise(program, z, 1 + len(saved))
    reads_state = cell.states[0] in program.used
    gates, written = given.gates, (y, *saved)
    before, held = h0, 0
    for now, *own, size in _walk(sizes, from_last, z, *gates, *written):
        state = before[:size]
        if size <= held or not held:
            if size < held:
                h_n[size:held].copy_(before[size:held])
            now.addmm_(state, w_t)
        else:
            now[:held].addmm_(before, w_t)
            now[held:].addmm_(h0[held:size], w_t)
            if reads_state:
                state = torch.cat([before, h0[held:size]])
        into = own[len(gates) :]
        step([*own[: len(gates)], state], into)
        before, held = into[0], size
    h_n[:held].copy_(before[:held])


def walk_backward(
    cell: Cell,
    given: BackwardRows,
    sizes: Sequence[int],
    from_last: bool,
    w_hh: Tensor,
    state: Tensor,
) -> None:
    """Write dz, and to `state` the gradients of the initial states.

    Args:
        cell: what a step computes.
        given: the rows.
        sizes: rows of each step.
        from_last: whether to walk from the last step to the first.
        w_hh: `[G*H, H]`.
        state: `[B, H]`; on entry, the gradients of the last states.
    """
    read, grad_y, dz = given
    gates = _gates(dz, state.shape[1])
    # `out` is the state, so the gradient of y is added to that of the state, in place.
    step = Pointwise(cell.backward, dz, len(gates), absent=["grad_out"])
    optional = () if grad_y is None else (grad_y,)
    stop = len(read) + len(gates)
    for own_dz, *own, size in _walk(sizes, from_last, dz, *read, *gates, *optional):
        g, own_grad = state[:size], own[stop:]
        if own_grad:
            g += own_grad[0]
        (share,) = step([*own[: len(read)], None, g], own[len(read) : stop])
        if share is None:
            torch.mm(own_dz, w_hh, out=g)
        else:
            torch.addmm(share, own_dz, w_hh, out=g)


def _gates(columns: Tensor, features: int) -> list[Tensor]:
    """`[N, H]` of each gate in `[N, G*H]`; a single one is the tensor itself."""
    count = columns.shape[1] // features
    return [columns] if count == 1 else list(columns.chunk(count, 1))


def _walk(sizes: Sequence[int], from_last: bool, *tensors: Tensor) -> Iterator[tuple[Any, ...]]:
    """The rows of each step in some tensors, and how many they are, in the order of a walk."""
    parts = {id(tensor): tensor.split_with_sizes(list(sizes)) for tensor in tensors}
    steps = zip(*(parts[id(tensor)] for tensor in tensors), sizes, strict=True)
    for step in reversed(list(steps)) if from_last else steps:
        if step[-1]:
            yield step

"""A direction's part of a recurrence: its rows, weights and gradients, without the other's."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from rnnjit import LayerSpec
from rnnjit.recurrence import Backward, Forward
from rnnjit.recurrence.rows import states_before
from rnnjit_inductor.pointwise import evaluate_like
from rnnjit_inductor.programs import Split, read_by_backward, with_gradients


class ForwardRows(NamedTuple):
    """A direction's rows in a forward walk; what no backward pass reads is not there.

    Attributes:
        z: `[N, G*H]`, overwritten.
        inputs: `[N, H]` of each row input.
        y: `[N, P or H]`, written; z itself for an Elman cell.
        out: `[N, H]`, the outputs before the projection, written, or None.
        states: `[N, H]` for each state but the first, written, or none of them.
        saved: `[N, H]` for each saved value, written, or none of them.
    """

    z: Tensor
    inputs: list[Tensor]
    y: Tensor
    out: Tensor | None
    states: tuple[Tensor, ...]
    saved: tuple[Tensor, ...]

    def part(self, rows: slice) -> ForwardRows:
        """Some of the rows."""
        z = self.z[rows]
        return ForwardRows(
            z,
            [each[rows] for each in self.inputs],
            z if self.y is self.z else self.y[rows],
            None if self.out is None else self.out[rows],
            tuple(each[rows] for each in self.states),
            tuple(each[rows] for each in self.saved),
        )


class ForwardWeights(NamedTuple):
    """What a forward walk multiplies and adds.

    Attributes:
        w_hh: `[P or H, G*H]`, transposed, or `[0, G*H]`.
        b_hh: `[G*H]`, see `Forward.b_hh`; None if there is none.
        w_hr: `[H, P]`, transposed; None if there is no projection.
    """

    w_hh: Tensor
    b_hh: Tensor | None
    w_hr: Tensor | None


class BackwardRows(NamedTuple):
    """A direction's rows in a backward walk.

    Attributes:
        read: `[N, H]` of each of `read_by_backward`.
        grad_y: `[N, P or H]`, or None for zeros.
        grad_states: for each state but the first `[N, H]`, or None for zeros.
        dz: `[N, A*H]`, written.
        dh: `[N, P]`, written; None if there is no projection.
        grad_parameters: `[N, H]` for each parameter that has a gradient, written; None if no
            gradients of parameters are needed.
        grad_inputs: `[N, H]` for each row input that has a gradient, written; None likewise.
    """

    read: list[Tensor]
    grad_y: Tensor | None
    grad_states: list[Tensor | None]
    dz: Tensor
    dh: Tensor | None
    grad_parameters: list[Tensor] | None
    grad_inputs: list[Tensor] | None

    def part(self, rows: slice) -> BackwardRows:
        """Some of the rows."""

        def those(tensors: list[Tensor] | None) -> list[Tensor] | None:
            return None if tensors is None else [each[rows] for each in tensors]

        return BackwardRows(
            [each[rows] for each in self.read],
            None if self.grad_y is None else self.grad_y[rows],
            [None if each is None else each[rows] for each in self.grad_states],
            self.dz[rows],
            None if self.dh is None else self.dh[rows],
            those(self.grad_parameters),
            those(self.grad_inputs),
        )


def forward_rows(call: Forward, direction: int) -> ForwardRows:
    """The rows of a direction."""
    layer, d = call.layer, direction
    H, P, G = layer.hidden_size, layer.output_size, len(layer.cell.gates)
    own = slice(d * H, (d + 1) * H)
    z = call.z[:, own.start * G : own.stop * G]
    return ForwardRows(
        z,
        inputs_of(layer, call.row_inputs, d),
        z if call.y is call.z else call.y[:, d * P : (d + 1) * P],
        None if call.out is None else call.out[:, own],
        tuple(each[:, own] for each in call.states),
        tuple(each[:, own] for each in call.saved),
    )


def forward_weights(call: Forward, direction: int) -> ForwardWeights:
    """The weights of a direction."""
    return ForwardWeights(
        call.w_hh[direction].t(),
        call.b_hh[direction] if call.b_hh else None,
        call.w_hr[direction].t() if call.w_hr else None,
    )


def backward_rows(call: Backward, direction: int) -> BackwardRows:
    """The rows of a direction."""
    layer, d = call.layer, direction
    cell, H, P, A = layer.cell, layer.hidden_size, layer.output_size, len(layer.cell.accumulators)
    own, projected = slice(d * H, (d + 1) * H), slice(d * P, (d + 1) * P)

    inputs = inputs_of(layer, call.row_inputs, d)
    parameters, row_inputs = with_gradients(cell)

    def after(index: int) -> Tensor:
        return call.states[index - 1][:, own] if index else call.y[:, projected]

    def named(name: str) -> Tensor:
        if name == "out":
            return after(0) if call.out is None else call.out[:, own]
        if name in cell.states:
            index = cell.states.index(name)
            return states_before(call.rows, call.starts, after(index), call.hx[index][d], d)
        if name in cell.row_inputs:
            return inputs[cell.row_inputs.index(name)]
        if name.startswith("saved_"):
            return call.saved[int(name.removeprefix("saved_"))][:, own]
        return after(cell.states.index(name.removeprefix("new_")))

    def blocks(columns: Tensor | None, count: int, which: list[int]) -> list[Tensor] | None:
        if columns is None:
            return None
        return [columns[:, (d * count + k) * H :][:, :H] for k in which]

    return BackwardRows(
        [named(name) for name in read_by_backward(cell)],
        None if call.grad_y is None else call.grad_y[:, projected],
        [None if each is None else each[:, own] for each in call.grad_states],
        call.dz[:, own.start * A : own.stop * A],
        None if call.dh is None else call.dh[:, projected],
        blocks(call.grad_parameters, len(cell.parameters), parameters),
        blocks(call.grad_row_inputs, len(cell.row_inputs), row_inputs),
    )


def first_gradients(call: Backward, direction: int) -> list[Tensor]:
    """`grad_hx` of a direction, filled with the gradients of the last states."""
    states = [state[direction] for state in call.grad_hx]
    for state, grad in zip(states, call.grad_h_n, strict=True):
        if grad is None:
            state.zero_()
        else:
            state.copy_(grad[direction])
    return states


def inputs_of(layer: LayerSpec, row_inputs: Tensor | None, direction: int) -> list[Tensor]:
    """`[N, H]` of each row input of a direction."""
    if row_inputs is None:
        return []
    count, H = len(layer.cell.row_inputs), layer.hidden_size
    return [row_inputs[:, (direction * count + k) * H :][:, :H] for k in range(count)]


def fixed_values(call: Forward | Backward, split: Split, direction: int) -> list[Tensor]:
    """What a direction's rows have in common, each `[H]` or a scalar."""
    found = evaluate_like(call.y, split.fixed, call.parameters[direction])
    return [each for each in found if each is not None]


def gates_of(columns: Tensor, count: int) -> list[Tensor]:
    """`[N, H]` of each of `count` blocks; a single one is the tensor itself."""
    return [columns] if count == 1 else list(columns.chunk(count, 1))

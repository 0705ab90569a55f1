"""Where the values of a cell lie: in the arrays of its device functions, and among its tensors.

A kernel takes its tensors as one tuple, since their number depends on the cell. Their order is:

    forward    z, y, state 1 .. S-1, saved 0 .. K-1, hx 0 .. S-1, h_n 0 .. S-1,
               then what the family of kernels has besides
    backward   dz, y, state 1 .. S-1, saved 0 .. K-1, hx 0 .. S-1, grad_hx 0 .. S-1, grad_y,
               then what the family of kernels has besides

At the end come, forward, the parameters, and the row inputs as one tensor if there are any; and
backward the same, the gradients of each row's parameters as one tensor, and those of row inputs.
"""

from __future__ import annotations

from typing import NamedTuple

from rnnjit.ir import CellSpec
from rnnjit.recurrence import dz_blocks

#: The numbers of the first two tensors of a tuple.
Z, Y = 0, 1


class CellLayout(NamedTuple):
    """The sizes of a cell, and where its values lie.

    Attributes:
        gates: G.
        accumulators: A.
        states: S.
        saved: K, the values that the forward pass saves besides states.
        inputs: for each accumulator the gate whose zx it contains, or -1.
        hidden: for each accumulator the gate whose zh it contains, or -1.
        blocks: for each accumulator its block of dz.
        after: the states after the step that the gradient reads, by their number.
        before: the states before the step that the gradient reads.
        direct: whether the gradient of the first state before does not only come through W_hh.
        parameters: P.
        row_inputs: R.
        parameters_read: the parameters that the gradient reads, by their number.
        row_inputs_read: the row inputs that the gradient reads.
        recorded: the number of states after every step that have gradients: all but the first, or
            0.
    """

    gates: int
    accumulators: int
    states: int
    saved: int
    inputs: tuple[int, ...]
    hidden: tuple[int, ...]
    blocks: tuple[int, ...]
    after: tuple[int, ...]
    before: tuple[int, ...]
    direct: bool
    parameters: int
    row_inputs: int
    parameters_read: tuple[int, ...]
    row_inputs_read: tuple[int, ...]
    recorded: int

    @property
    def given(self) -> int:
        """Inputs of the step: accumulators, states, parameters, row inputs."""
        return self.accumulators + self.states + self.parameters + self.row_inputs

    @property
    def loaded(self) -> int:
        """Inputs of the step that are loaded for each row: accumulators, row inputs."""
        return self.accumulators + self.row_inputs

    @property
    def found(self) -> int:
        """Outputs of the step: out, the new states, what is saved."""
        return 1 + self.states + self.saved

    @property
    def read(self) -> int:
        """Inputs of the gradient of a row that are known: saved, after, before, row inputs."""
        return self.saved + len(self.after) + len(self.before) + len(self.row_inputs_read)

    @property
    def gradients(self) -> int:
        """Inputs of the gradient: `ahead`, the gradients of new states, parameters."""
        return self.ahead + self.states + len(self.parameters_read)

    @property
    def ahead(self) -> int:
        """Inputs of the gradient that are loaded for each row: `read`, grad_out, `recorded`."""
        return self.read + 1 + self.recorded

    @property
    def found_back(self) -> int:
        """Outputs of the gradient: of accumulators, states before, parameters, row inputs."""
        return self.given

    @property
    def first_saved(self) -> int:
        """The number of the first saved tensor."""
        return Y + self.states

    @property
    def first_hx(self) -> int:
        """The number of the first initial state."""
        return self.first_saved + self.saved

    @property
    def first_end(self) -> int:
        """The number of the first of h_n or grad_hx."""
        return self.first_hx + self.states

    @property
    def first_more(self) -> int:
        """The number of the first tensor behind those that both passes have."""
        return self.first_end + self.states


def layout_of(cell: CellSpec, *, recorded: bool = False) -> CellLayout:
    """The layout of a cell; `recorded` as in `KernelKey`."""
    names, parameters, row_inputs = list(cell.states), cell.parameters, cell.row_inputs
    used = cell.backward.inputs[len(cell.saved) : -1 - len(names)]
    before = [name for name in used if name in names]
    others = {*before, *parameters, *row_inputs}
    after = [name for name in used if name not in others]
    return CellLayout(
        len(cell.gates),
        len(cell.accumulators),
        len(names),
        len(cell.saved),
        tuple(each.gate if each.has_input else -1 for each in cell.accumulators),
        tuple(each.gate if each.has_hidden else -1 for each in cell.accumulators),
        dz_blocks(cell),
        tuple(0 if name == "out" else names.index(name[4:]) for name in after),
        tuple(names.index(name) for name in before),
        cell.backward.outputs[len(cell.accumulators)] is not None,
        len(parameters),
        len(row_inputs),
        tuple(parameters.index(name) for name in used if name in parameters),
        tuple(row_inputs.index(name) for name in used if name in row_inputs),
        len(names) - 1 if recorded else 0,
    )

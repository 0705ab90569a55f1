"""How a cell's gates lie in the kernels' memory.

Forward, the pre-activations of a row are column vectors `[V][G][lanes]`: for each vector of hidden
units, the vectors of its gates lie beside each other. If the cell uses zx and zh of some gate
apart, there are two such rows, one for zx and one for zh of all gates.

Backward, the gradients of the accumulators of a row, dz, are blocks of H columns: first, gate by
gate, those that contain W_hh a, then those that contain W_ih x alone. So the part that is
multiplied with W_hh is one matrix, whose columns are the rows of W_hh. Behind them are the blocks
of the parameters' gradients, which are summed over all rows as those of the biases are.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from rnnjit.ir import CellSpec
from rnnjit.spec import LayerSpec


class Run(NamedTuple):
    """Adjacent blocks of dz that belong to adjacent gates of the same weights.

    Attributes:
        block: the first block.
        blocks: how many there are.
        input_gate: the gate of W_ih that the first block belongs to; -1 if to none.
        hidden_gate: the same of W_hh.
    """

    block: int
    blocks: int
    input_gate: int
    hidden_gate: int


@dataclass(frozen=True)
class CellLayout:
    """The numbers of a cell's parts, and the order of its gradients.

    Attributes:
        cell: the cell.
    """

    cell: CellSpec

    @property
    def gates(self) -> int:
        """G."""
        return len(self.cell.gates)

    @property
    def apart(self) -> bool:
        """Whether the cell uses zx and zh of some gate apart."""
        return len(self.cell.accumulators) > self.gates

    @property
    def in_place(self) -> bool:
        """Whether the pre-activation of nn.RNN's cell lies in y, where the state replaces it."""
        return self.cell.is_elman

    @cached_property
    def blocks(self) -> tuple[int, ...]:
        """For each accumulator its block of dz."""
        found, behind = [], self.gates if self.cell.has_product else 0
        for accumulator in self.cell.accumulators:
            found.append(accumulator.gate if accumulator.has_hidden else behind)
            behind += not accumulator.has_hidden
        return tuple(found)

    @cached_property
    def runs(self) -> tuple[Run, ...]:
        """The blocks of dz, from the first to the last."""
        by_block = dict(zip(self.blocks, self.cell.accumulators, strict=True))
        runs: list[Run] = []
        for block in range(len(by_block)):
            accumulator = by_block[block]
            x = accumulator.gate if accumulator.has_input else -1
            h = accumulator.gate if accumulator.has_hidden else -1
            last = runs[-1] if runs else Run(0, 0, -2, -2)
            if x == _following(last.input_gate, last) and h == _following(last.hidden_gate, last):
                runs[-1] = last._replace(blocks=last.blocks + 1)
            else:
                runs.append(Run(block, 1, x, h))
        return tuple(runs)

    @cached_property
    def parameter_blocks(self) -> tuple[int | None, ...]:
        """For each parameter its block of dz; None if no gradient reaches it."""
        cell, found = self.cell, []
        behind = len(cell.accumulators)
        first = behind + len(cell.states)
        for gradient in cell.backward.outputs[first : first + len(cell.parameters)]:
            found.append(None if gradient is None else behind)
            behind += gradient is not None
        return tuple(found)

    @property
    def dz_blocks(self) -> int:
        """Blocks of a row of dz: of the accumulators, then of the parameters."""
        graded = sum(block is not None for block in self.parameter_blocks)
        return len(self.cell.accumulators) + graded

    @property
    def passes_state(self) -> bool:
        """Whether the state before a step gets a gradient that does not come through W_hh."""
        return self.cell.backward.outputs[len(self.cell.accumulators)] is not None

    @property
    def reads_states(self) -> bool:
        """Whether the gradient of a step reads a state from before it."""
        return any(name in self.cell.backward.used for name in self.cell.states)


def operand_size(layer: LayerSpec) -> int:
    """The features of the recurrent operand, and so the columns of W_hh: P, H or 0."""
    return layer.output_size if layer.cell.has_product else 0


def _following(gate: int, run: Run) -> int:
    """The gate of the block that would continue a run."""
    return gate + run.blocks if gate >= 0 else gate


def why_not_layout(cell: CellSpec) -> list[str]:
    """Why the kernels cannot compute a cell; empty if they can.

    They take any cell in normal form.
    """
    reasons = []
    if cell.operand is not None:
        reasons.append("the cell's recurrent operand is not its state: only that is supported")
    if cell.out_state != 0:
        reasons.append("the cell's output is not its first state: only that is supported")
    return reasons


def why_not_projected(cell: CellSpec) -> list[str]:
    """Why the kernels cannot project a cell's output (proj_size); empty if they can."""
    if cell.is_elman:
        return ["projections (proj_size) of a cell with one gate and one state are not supported"]
    if cell.states[0] in cell.step.used:
        return ["projections (proj_size) of a state that the step itself reads are not supported"]
    if cell.parameters or cell.row_inputs or not cell.has_product:
        return [
            "projections (proj_size) of a cell with parameters or row inputs, or without a "
            "recurrent product, are not supported"
        ]
    return []

"""Which cells' outputs follow from another state, so that they need not be kept for backward."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from rnnjit.ir.cell_spec import CellSpec
from rnnjit.ir.program import Instruction, Program

#: Operations that round nothing: whoever computes them gets the same bits.
_EXACT = frozenset({"abs", "neg", "relu", "clamp"})


class RebuiltOutput(NamedTuple):
    """How the output of a step follows from one of its new states.

    Attributes:
        state: the number of the state.
        program: from the state to the output.
    """

    state: int
    program: Program


@lru_cache(maxsize=1024)
def rebuilt_output(cell: CellSpec) -> RebuiltOutput | None:
    """How the output follows from a state that is not the first, or None if it does not.

    It follows by one operation that rounds nothing, such as the rate relu(v) of a voltage v: that
    costs no more than a copy of the output, and gives its bits.

        >>> from rnnjit.ir.builder import relu
        >>> def step(zx, zh, r, v):
        ...     v = v + zx[0] + zh[0]
        ...     return relu(v), relu(v), v
        >>> rebuilt_output(CellSpec.trace(step, name="rate", gates=["z"], states=["r", "v"]))
        RebuiltOutput(state=1, program=Program.parse('(v) %1 = relu(%0); return %1'))
    """
    step = cell.step
    out, *new = step.outputs
    if out is None or out < len(step.inputs) or cell.out_state != 0:
        return None
    last = step.instructions[out - len(step.inputs)]
    if last.operation not in _EXACT or last.arguments[0] not in new[1:]:
        return None
    state = new.index(last.arguments[0])
    again = Instruction(last.operation, (0,), last.constants)
    return RebuiltOutput(state, Program((cell.states[state],), (again,), (1,)))

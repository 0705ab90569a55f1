"""Which cells the kernels of nn.RNN compute: those with the same data flow, in words."""

from __future__ import annotations

from rnnjit.cells import Cell


def why_not_elman(cell: Cell) -> list[str]:
    """Why a cell is not h' = f(W_ih x + b_ih + W_hh h + b_hh); empty if it is.

    f is any pointwise function whose derivative follows from its result.
    """
    reasons = []
    if len(cell.gates) > 1:
        reasons.append(f"{len(cell.gates)} gates")
    elif len(cell.accumulators) > 1:
        reasons.append("input and hidden parts of its gate apart from each other")
    if len(cell.states) > 1:
        reasons.append(f"{len(cell.states)} states")
    if cell.parameters:
        reasons.append("parameters beside weights and biases")
    if cell.operand is not None:
        reasons.append("a recurrent operand that is not the state itself")
    if not reasons and not cell.is_elman:
        reasons.append(_of_one_gate(cell))
    if not reasons:
        return []
    return [
        f"cell {cell.name!r} has {', '.join(reasons)}: only cells of the form "
        "h' = f(W_ih x + b_ih + W_hh h + b_hh) are computed"
    ]


def _of_one_gate(cell: Cell) -> str:
    """What a cell of one gate and one state has that the form has not."""
    if cell.out_state is None:
        return "an output that is not its state"
    if cell.step.used != {cell.accumulators[0].name}:
        return "a new state that is not a function of its gate alone"
    return "a derivative that does not follow from the new state"

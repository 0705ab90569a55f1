"""Decides whether the kernels of nn.RNN can compute a cell, and gives the reasons if not."""

from __future__ import annotations

from rnnjit.ir import CellSpec


def why_not_elman(cell: CellSpec) -> list[str]:
    """Why a cell is not h' = f(W_ih x + b_ih + W_hh h + b_hh); empty if it is.

    f is any pointwise function whose result determines its derivative, see `CellSpec.is_elman`.
    """
    reasons = []
    if len(cell.gates) > 1:
        reasons.append(f"the cell has {len(cell.gates)} gates: only one is supported")
    if len(cell.states) > 1:
        reasons.append(f"the cell has {len(cell.states)} states: only one is supported")
    if cell.parameters:
        names = ", ".join(cell.parameters)
        reasons.append(f"the cell has parameters ({names}): none are supported")
    if cell.row_inputs:
        names = ", ".join(cell.row_inputs)
        reasons.append(f"the cell has row inputs ({names}): none are supported")
    if cell.operand is not None:
        reasons.append("the cell's recurrent operand is not its state: only that is supported")
    if not (reasons or cell.is_elman):
        reasons.append(
            "the cell does not have the form h' = f(W_ih x + b_ih + W_hh h + b_hh), with a "
            f"derivative of f that follows from h': {_difference(cell)}"
        )
    return reasons


def _difference(cell: CellSpec) -> str:
    """How a cell with one gate and one state differs from that form."""
    if not cell.has_product:
        return "it has no recurrent product"
    if len(cell.accumulators) > 1:
        return "W_ih x and W_hh h are used apart"
    if cell.out_state is None:
        return "the output is not the new state"
    if cell.step.used != {cell.accumulators[0].name}:
        return "the new state depends on the state before in another way"
    return "the derivative needs more than h'"

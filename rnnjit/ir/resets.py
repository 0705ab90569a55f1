"""Cells that reset their own states, where a row input says that the next step starts anew.

A reset must reach the recurrent operand of the next step, so that a step replaces the states that
it hands on. Its output, and the states that callers see, are those before:

    out, s_1' .. s_S' = program(zx, zh, s_1 .. s_S, p, r)
    s_k = reset ? start_k : s_k'

What steps start from is 0, a parameter [H], or a row input. The normal form of such a cell makes
its operand from the replaced states, and keeps the output as a state of its own.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Literal

from rnnjit.ir.builder import Builder, where
from rnnjit.ir.cell_spec import CellSpec
from rnnjit.ir.derivative import replay

#: What a reset puts in the place of the states: zeros, a vector [H] of each, or rows of each.
Starts = Literal["zeros", "vectors", "rows"]


@lru_cache(maxsize=1024)
def with_resets(cell: CellSpec, starts: Starts = "zeros", *, every: bool = False) -> CellSpec:
    """The cell that replaces the states it hands on where its row input `reset_` is not 0.

    Args:
        cell: any cell, in normal form or not.
        starts: what takes the place of the states: zeros; with "vectors" one further parameter of
            the cell for each state, behind its own; with "rows" one further row input for each,
            behind `reset_`.
        every: whether the states before their replacement are states, too.

    Returns:
        A cell with the gates of `cell`. Its states are those of `cell`, handed on, and with `every`
        then the same number again, as the step computed them; no step reads these. Its row inputs
        are those of `cell` and then `reset_`. A name that `cell` has taken gets a further `_`.
    """
    names = iter(_free(cell, _wanted(len(cell.states))))
    reset = next(names)
    anew, reached = ([next(names) for _ in cell.states] for _ in range(2))
    parameters = (*cell.parameters, *(anew if starts == "vectors" else ()))
    row_inputs = (*cell.row_inputs, reset, *(anew if starts == "rows" else ()))
    states = (*cell.states, *(reached if every else ()))
    parts = cell.program.inputs[: 2 * len(cell.gates)]
    builder = Builder([*parts, *states, *parameters, *row_inputs])
    by_name = dict(zip([*parts, *states, *parameters, *row_inputs], builder.inputs, strict=True))
    values = replay(builder, cell.program, [by_name[name] for name in cell.program.inputs])
    out, *new = (values[number] for number in cell.program.outputs if number is not None)
    resets = by_name[reset] != 0.0
    handed = [
        where(resets, 0.0 if starts == "zeros" else by_name[name], value)
        for name, value in zip(anew, new, strict=True)
    ]
    program = builder.finish([out, *handed, *(new if every else ())])
    operand = None
    if cell.operand is not None:
        builder = Builder([*states, *parameters])
        own = dict(zip([*states, *parameters], builder.inputs, strict=True))
        found = replay(builder, cell.operand, [own[name] for name in cell.operand.inputs])
        operand = builder.finish(found[n] for n in cell.operand.outputs if n is not None)
    return CellSpec(
        f"{cell.name} with resets", cell.gates, states, parameters, program, operand, row_inputs
    )


def _wanted(states: int) -> list[str]:
    """The names of the mask, of what each state starts from, and of each as it was computed."""
    return [
        "reset_",
        *(f"start_{index}_" for index in range(states)),
        *(f"reached_{index}_" for index in range(states)),
    ]


def _free(cell: CellSpec, names: Iterable[str]) -> list[str]:
    """These names, each with as many further `_` as it needs to be none of the cell's."""
    taken, found = {*cell.states, *cell.parameters, *cell.row_inputs}, []
    for name in names:
        while name in taken:
            name += "_"
        found.append(name)
    return found

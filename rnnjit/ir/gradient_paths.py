"""Where gradients of a cell's results lead, over any number of steps."""

from __future__ import annotations

from collections.abc import Collection
from functools import lru_cache
from typing import NamedTuple

from rnnjit.ir.cell_spec import CellSpec
from rnnjit.ir.operations import OPERATIONS, Kind
from rnnjit.ir.program import Program


class Reached(NamedTuple):
    """What the gradient of one result reaches.

    Attributes:
        zx, zh: whether the products with x and with the operand, and so their factors.
        states, parameters, row_inputs: the numbers of those.
    """

    zx: bool
    zh: bool
    states: frozenset[int]
    parameters: frozenset[int]
    row_inputs: frozenset[int]


@lru_cache(maxsize=1024)
def gradient_paths(cell: CellSpec) -> tuple[Reached, ...]:
    """What the gradients of the output and of every state after some steps reach.

    A gradient that is zero by its value reaches what it leads to; one that is stopped, by `detach`
    or a comparison, does not. That is how autograd decides which results require a gradient.
    """
    G, S = len(cell.gates), len(cell.states)
    found = _reached(cell.program)
    operand = frozenset({0}) if cell.operand is None else _reached(cell.operand)[0]
    through_zh = {2 * G + k for k in operand}  # the operand has the states, then the parameters
    zh, states = set(range(G, 2 * G)), range(2 * G, 2 * G + S)
    closed = [set(each) for each in found]
    grows = True
    while grows:
        grows = False
        for each in closed:
            more = set(through_zh) if each & zh else set()
            more |= {k for state in states if state in each for k in closed[1 + state - 2 * G]}
            grows = grows or not more <= each
            each |= more
    return tuple(_grouped(cell, each) for each in closed)


def reach_everything(cell: CellSpec) -> bool:
    """Whether every result requires a gradient if anything does that the cell reads."""
    G = len(cell.gates)
    read = _read(cell.program)
    if cell.has_product:
        read |= {2 * G} if cell.operand is None else {2 * G + k for k in _read(cell.operand)}
    everything = _grouped(cell, read)
    return all(each == everything for each in gradient_paths(cell))


def _grouped(cell: CellSpec, inputs: Collection[int]) -> Reached:
    """Inputs of a cell's program by what they are."""
    G, S, P = len(cell.gates), len(cell.states), len(cell.parameters)
    first = 2 * G + S
    return Reached(
        any(k < G for k in inputs),
        any(G <= k < 2 * G for k in inputs),
        frozenset(k - 2 * G for k in inputs if 2 * G <= k < first),
        frozenset(k - first for k in inputs if first <= k < first + P),
        frozenset(k - first - P for k in inputs if k >= first + P),
    )


def _read(program: Program) -> set[int]:
    """The inputs that a program reads."""
    taken = {k for each in program.instructions for k in each.arguments}
    return {k for k in (*taken, *program.outputs) if k is not None and k < len(program.inputs)}


def _reached(program: Program) -> list[frozenset[int]]:
    """For each output the inputs that its gradient reaches."""
    values = [frozenset({k}) for k in range(len(program.inputs))]
    for each in program.instructions:
        arguments = each.arguments
        if each.operation == "with_slope":
            arguments = arguments[:2]
        if each.operation == "detach" or OPERATIONS[each.operation].result is Kind.CONDITION:
            arguments = ()
        values.append(frozenset().union(*(values[k] for k in arguments)))
    return [frozenset() if k is None else values[k] for k in program.outputs]

"""The normal form of a cell, which is all that backends compute.

Its recurrent operand and its output are its first state. A cell of another form becomes one by
further states: the operand of the next step is a state of this one, since it is a function of the
states; and so is an output that is none of the states.

    v' = (1 - a) v + a (zx + W_hh relu(v)),  out = relu(v')        is, with the state u = relu(v),
    v' = (1 - a) v + a (zx + W_hh u),  u' = relu(v'),  out = u'
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from rnnjit.ir.builder import Builder, Value
from rnnjit.ir.cell_spec import CellSpec
from rnnjit.ir.derivative import replay
from rnnjit.ir.program import Program

_OPERAND, _OUTPUT = "operand_", "output_"


@dataclass(frozen=True)
class NormalForm:
    """A cell in normal form, and how its states and those of the original cell belong together.

    Attributes:
        cell: computes the same, with its first state as its recurrent operand. Its own output is
            that state, too.
        states: for each state of the original its number among the states of `cell`.
        output: the number of the state that is the output of the original; not 0 if that differs
            from the operand.
        initial: from the states of the original and the parameters to the initial states of `cell`;
            None if they are the same. The initial value of a state that no step reads is 0.
    """

    cell: CellSpec
    states: tuple[int, ...]
    output: int
    initial: Program | None


@lru_cache(maxsize=1024)
def normal_form(cell: CellSpec) -> NormalForm:
    """The normal form of a cell; `cell` itself if it has it already."""
    same = tuple(range(len(cell.states)))
    if cell.operand is None and cell.out_state == 0:
        return NormalForm(cell, same, 0, None)
    names = cell.program.inputs
    builder = Builder(names)
    given = dict(zip(names, builder.inputs, strict=True))
    numbers = [n for n in cell.program.outputs if n is not None]
    values = replay(builder, cell.program, builder.inputs)
    out, *new = (values[n] for n in numbers)
    operand = _operand(cell, builder, given, new)
    wanted: list[tuple[str, Value]] = list(zip(cell.states, new, strict=True))
    first = next((k for k, value in enumerate(new) if value.number == operand.number), None)
    if cell.operand is None:
        first = 0
    if first is None:
        wanted.insert(0, (_OPERAND, operand))
    else:
        wanted.insert(0, wanted.pop(first))
    found = [k for k, (_, value) in enumerate(wanted) if value.number == out.number]
    if not found:
        wanted.append((_OUTPUT, out))
    return _form(cell, builder, wanted, found[0] if found else len(wanted) - 1)


def _operand(cell: CellSpec, builder: Builder, given: dict[str, Value], new: list[Value]) -> Value:
    """The operand of the next step."""
    if cell.operand is None:
        return new[0]
    parameters = [given[name] for name in cell.parameters]
    (number,) = cell.operand.outputs
    assert number is not None
    return replay(builder, cell.operand, [*new, *parameters])[number]


def _form(
    cell: CellSpec, builder: Builder, wanted: list[tuple[str, Value]], output: int
) -> NormalForm:
    """The normal form with these states, of which the first is the operand."""
    states = tuple(name for name, _ in wanted)
    traced = builder.finish([wanted[0][1], *(value for _, value in wanted)])
    names = [*cell.program.inputs[: 2 * len(cell.gates)], *states, *cell.parameters]
    program = _with_inputs(traced, [*names, *cell.row_inputs])
    normal = CellSpec(
        cell.name, cell.gates, states, cell.parameters, program, None, cell.row_inputs
    )
    places = tuple(states.index(name) for name in cell.states)
    return NormalForm(normal, places, output, _initial(cell, states))


def _with_inputs(program: Program, names: list[str]) -> Program:
    """The program with these inputs, among which are all of its own."""
    builder = Builder(names)
    by_name = dict(zip(names, builder.inputs, strict=True))
    values = replay(builder, program, [by_name[name] for name in program.inputs])
    return builder.finish(None if n is None else values[n] for n in program.outputs)


def _initial(cell: CellSpec, states: tuple[str, ...]) -> Program | None:
    if states == cell.states:
        return None
    builder = Builder([*cell.states, *cell.parameters])
    own = dict(zip(cell.states, builder.inputs, strict=False))
    values: list[Value | float] = []
    for name in states:
        if name in own:
            values.append(own[name])
        elif name == _OPERAND and cell.operand is not None:
            (number,) = cell.operand.outputs
            assert number is not None
            values.append(replay(builder, cell.operand, builder.inputs)[number])
        else:
            values.append(0.0)
    return builder.finish(values)

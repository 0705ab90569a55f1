"""A cell's programs as this backend runs them: what is the same in every row is computed once.

    fixed      f_1, f_2, ... = fixed(p_1 .. p_P)                    once a call, `[H]` or a scalar
    step       out, s_2', ..., saved = rows(f_1, ..., z, s, r)      for every row
    backward   dz, dp, dr, ds = rows(f_1, ..., read, grad_out, grad_s)

Of `with_slope` and `detach`, which only say how to differentiate, the values alone are left.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple

from rnnjit.ir import OPERATIONS, CellSpec, Kind, Program
from rnnjit.ir.builder import Builder, Value
from rnnjit.recurrence import gradients_of


class Split(NamedTuple):
    """A program in two parts.

    Attributes:
        fixed: from a cell's parameters to the values that depend on nothing else.
        rows: the program; its inputs are these values, then the inputs that are no parameters.
    """

    fixed: Program
    rows: Program


@lru_cache(maxsize=256)
def step_of(cell: CellSpec, saves: bool) -> Split:
    """A cell's step without the first new state, which is `out`.

    Its inputs are the accumulators, states and row inputs; its outputs are out, the other new
    states, then the saved values.

    Args:
        cell: the cell; its output is its first state.
        saves: whether the saved values are among the outputs.
    """
    program = cell.step_saving if saves else cell.step
    out, _, *others = program.outputs
    return _split(program, cell.parameters, [out, *others])


@lru_cache(maxsize=256)
def backward_of(cell: CellSpec, parameters: bool, row_inputs: bool) -> Split:
    """A cell's backward step.

    Its inputs are `read_by_backward`, then the gradients of out and the new states. Its outputs are
    the gradients of the accumulators, those of parameters and of row inputs that the cell's program
    has, and those of the states.

    Args:
        cell: the cell; its output is its first state.
        parameters: whether gradients of parameters are among the outputs.
        row_inputs: whether gradients of row inputs are.
    """
    outputs = iter(cell.backward.outputs)
    dz, states, of_parameters, of_rows = (
        [next(outputs) for _ in names]
        for names in (cell.accumulators, cell.states, cell.parameters, cell.row_inputs)
    )
    wanted = [*(of_parameters if parameters else []), *(of_rows if row_inputs else [])]
    present = [number for number in wanted if number is not None]
    return _split(cell.backward, cell.parameters, [*dz, *present, *states])


def read_by_backward(cell: CellSpec) -> list[str]:
    """The row inputs of a cell's backward program except the last, which are gradients.

    They are saved_0, saved_1, ..., out, new_STATE, STATE for the state before, and row inputs.
    """
    names = cell.backward.inputs[: -1 - len(cell.states)]
    return [name for name in names if name not in cell.parameters]


def with_gradients(cell: CellSpec) -> tuple[list[int], list[int]]:
    """The numbers of the parameters and of the row inputs that have a gradient."""
    parameters, row_inputs = gradients_of(cell, "parameters"), gradients_of(cell, "row_inputs")
    return _numbers(parameters), _numbers(row_inputs)


def _numbers(which: Sequence[bool]) -> list[int]:
    return [k for k, each in enumerate(which) if each]


def _split(program: Program, parameters: Sequence[str], outputs: Iterable[int | None]) -> Split:
    whole = _values_alone(program, outputs)
    varies = [name not in parameters for name in whole.inputs]
    for each in whole.instructions:
        varies.append(any(varies[n] for n in each.arguments))
    first, hoisted, used = len(varies) - len(whole.instructions), [], set(whole.outputs)
    for number in reversed(range(len(varies))):
        if varies[number] or (number in used and not _is_computed(whole, number)):
            used.update(whole.instructions[number - first].arguments if number >= first else ())
        elif number in used:
            hoisted.append(number)
    rows = [name for name in whole.inputs if name not in parameters]
    prefix = "fixed"
    while any(name.startswith(prefix) for name in rows):
        prefix += "_"
    names = [f"{prefix}_{k}" for k in range(len(hoisted))]
    return Split(
        _part(whole, list(parameters), {}, hoisted),
        _part(whole, [*names, *rows], dict(zip(hoisted, names, strict=True)), whole.outputs),
    )


def _is_computed(program: Program, number: int) -> bool:
    """Whether a value is a parameter or a computed number: no literal, and no condition."""
    first = len(program.inputs)
    if number < first:
        return True
    operation = program.instructions[number - first].operation
    return OPERATIONS[operation].result is Kind.NUMBER and operation != "constant"


def _values_alone(program: Program, outputs: Iterable[int | None]) -> Program:
    """The program with these outputs, and without `detach` and `with_slope`."""
    builder = Builder(program.inputs)
    values: list[Value] = list(builder.inputs)
    for each in program.instructions:
        if each.operation in ("detach", "with_slope"):
            values.append(values[each.arguments[0]])
        else:
            values.append(builder.replay(each, values))
    return builder.finish(None if number is None else values[number] for number in outputs)


def _part(
    program: Program,
    inputs: Sequence[str],
    known: dict[int, str],
    outputs: Iterable[int | None],
) -> Program:
    """The part of a program that leads from some inputs, and values that are inputs now."""
    builder = Builder(inputs)
    by_name = dict(zip(inputs, builder.inputs, strict=True))
    values: dict[int, Value] = {
        number: by_name[name] for number, name in enumerate(program.inputs) if name in by_name
    }
    values |= {number: by_name[name] for number, name in known.items()}
    for number, each in enumerate(program.instructions, len(program.inputs)):
        if number not in values and all(n in values for n in each.arguments):
            arguments = [values[n] for n in each.arguments]
            values[number] = builder.append(each.operation, arguments, each.constants)
    return builder.finish(None if number is None else values[number] for number in outputs)

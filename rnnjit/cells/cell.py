"""What a recurrent layer computes: a `Cell`, a value that is its program and nothing else.

A layer's direction computes, for every row, in this order

    zx = W_ih x_t + b_ih              G gates of H columns
    zh = W_hh a_{t-1} + b_hh          G gates of H columns; a: the recurrent operand
    out, s_1' .. s_S' = program(zx, zh, s_1 .. s_S, p_1 .. p_P)
    h' = W_hr out                     only where nn.LSTM has a proj_size; outside of the program

with states s [H], parameters p [H], and a program that is pointwise over the H hidden units. The
operand is a pointwise function of the states before, by default the first state itself.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Literal

from rnnjit.cells.backward import Backward, plan_backward
from rnnjit.cells.builder import Builder, Value, trace
from rnnjit.cells.derivative import derivative
from rnnjit.cells.program import Program

_TEXT = re.compile(
    r"cell 1\ngates (?P<gates>\d+)\nstates(?P<states>.*)\nparameters(?P<parameters>.*)\n"
    r"program (?P<program>.*)\noperand (?P<operand>.*)\n"
)


@dataclass(frozen=True)
class Accumulator:
    """A sum of products that a step's pointwise part begins with.

    Attributes:
        name: the step's input: z_G for a sum, zx_G and zh_G for the parts of gate number G.
        gate: the gate's number.
        part: "sum" for zx + zh, "input" for zx, "hidden" for zh.
    """

    name: str
    gate: int
    part: Literal["sum", "input", "hidden"]

    @property
    def has_input(self) -> bool:
        """Whether W_ih x + b_ih is in it."""
        return self.part != "hidden"

    @property
    def has_hidden(self) -> bool:
        """Whether W_hh a + b_hh is in it."""
        return self.part != "input"


@dataclass(frozen=True, eq=False)
class Cell:
    """A recurrent cell. Cells are equal, and hash alike, if their texts are.

    Attributes:
        name: for people; no part of the identity.
        gates: names of the gates, for people too; the programs count gates from 0.
        states: names of the states; the first is h, what y holds unless `out` differs from it.
        parameters: names of vectors [H] that are learnt, beside weights and biases.
        program: inputs zx_0 .. zx_{G-1}, zh_0 .. zh_{G-1}, states, parameters; outputs `out` and
            the new states.
        operand: inputs are the states; its output is the recurrent operand. None: the first state.

    Raises:
        ValueError: the program's inputs or outputs are others, there is no gate or no state, or a
            name is taken by what a cell's programs name themselves.
    """

    name: str
    gates: tuple[str, ...]
    states: tuple[str, ...]
    parameters: tuple[str, ...]
    program: Program
    operand: Program | None = None

    def __post_init__(self) -> None:
        _check_names(self.name, len(self.gates), self.states, self.parameters)
        expected = _inputs(len(self.gates), self.states, self.parameters)
        if self.program.inputs != expected:
            raise ValueError(
                f"cell {self.name}: expected a program of {', '.join(expected)}, "
                f"got one of {', '.join(self.program.inputs)}"
            )
        _check_outputs(self.name, "program", self.program, 1 + len(self.states))
        if self.operand is not None:
            if self.operand.inputs != self.states:
                raise ValueError(
                    f"cell {self.name}: expected an operand of {', '.join(self.states)}, "
                    f"got one of {', '.join(self.operand.inputs)}"
                )
            _check_outputs(self.name, "operand", self.operand, 1)

    @staticmethod
    def trace(
        function: Callable[..., Sequence[Value | float]],
        *,
        name: str,
        gates: Sequence[str],
        states: Sequence[str],
        parameters: Sequence[str] = (),
        operand: Callable[..., Value] | None = None,
    ) -> Cell:
        """The cell that a Python function computes.

        Args:
            function: takes zx and zh, tuples with one `Value` per gate, and then states and
                parameters, each a `Value`; returns `out` and the new states.
            name: the cell's.
            gates: the gates' names.
            states: the states' names.
            parameters: the parameters' names.
            operand: takes the states, returns the recurrent operand.
        """
        count = len(gates)
        _check_names(name, count, states, parameters)

        def flat(*values: Value) -> Sequence[Value | float]:
            return function(values[:count], values[count : 2 * count], *values[2 * count :])

        program = trace(flat, _inputs(count, states, parameters))
        recurrent = None if operand is None else trace(operand, states)
        return Cell(name, tuple(gates), tuple(states), tuple(parameters), program, recurrent)

    @staticmethod
    def parse(text: str) -> Cell:
        """The cell whose `text` this is: a built-in one itself, else one without names.

        Raises:
            ValueError, TypeError: the text is none of a cell's.
        """
        return _parse(text)

    @cached_property
    def text(self) -> str:
        """What the cell computes, in a canonical form that `parse` reads."""
        return (
            f"cell 1\ngates {len(self.gates)}\n{' '.join(['states', *self.states])}\n"
            f"{' '.join(['parameters', *self.parameters])}\nprogram {self.program.text}\n"
            f"operand {'none' if self.operand is None else self.operand.text}\n"
        )

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the text, in hex: the cell's identity in caches, symbols and artifacts."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        return self.digest == other.digest if isinstance(other, Cell) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        return f"<cell {self.name} {self.digest[:12]}>"

    def __reduce__(self) -> tuple[object, ...]:
        fields = (self.name, self.gates, self.states, self.parameters, self.program, self.operand)
        return Cell, fields

    def __deepcopy__(self, memo: object) -> Cell:
        return self

    @cached_property
    def accumulators(self) -> tuple[Accumulator, ...]:
        """What is accumulated, gate by gate: one sum where zx and zh meet only in it, else both.

        GRU's n needs zx and zh apart, and has two: an input part and then a hidden one.
        """
        found: list[Accumulator] = []
        for gate in range(len(self.gates)):
            if gate in self._sums.values():
                found.append(Accumulator(f"z_{gate}", gate, "sum"))
            else:
                found.append(Accumulator(f"zx_{gate}", gate, "input"))
                found.append(Accumulator(f"zh_{gate}", gate, "hidden"))
        return tuple(found)

    @cached_property
    def step(self) -> Program:
        """The forward step: inputs accumulators, states, parameters; outputs out, new states."""
        names = [accumulator.name for accumulator in self.accumulators]
        builder = Builder([*names, *self.states, *self.parameters])
        by_name = dict(zip([*names, *self.states, *self.parameters], builder.inputs, strict=True))
        # None: parts of a sum, which nothing else refers to.
        values = [by_name.get(name) for name in self.program.inputs]
        first = len(values)
        for number, instruction in enumerate(self.program.instructions, first):
            if number in self._sums:
                values.append(by_name[f"z_{self._sums[number]}"])
            else:
                arguments = [_present(values[n]) for n in instruction.arguments]
                values.append(
                    builder.append(instruction.operation, arguments, instruction.constants)
                )
        outputs = [number for number in self.program.outputs if number is not None]
        return builder.finish(_present(values[number]) for number in outputs)

    @cached_property
    def saved(self) -> tuple[int, ...]:
        """Numbers of the step's values that are stored for the backward pass, beside states."""
        return self._backward.saved

    @cached_property
    def step_saving(self) -> Program:
        """The step with the saved values as further outputs."""
        step = self.step
        return Program(step.inputs, step.instructions, step.outputs + self.saved)

    @property
    def backward(self) -> Program:
        """The gradients of the step's inputs: of accumulators, states and parameters, per row.

        Its inputs are, in this order:

        * saved_0, saved_1, ...: the values that `step_saving` gives after out and the new states;
        * out, new_STATE: of the step's outputs those that are used, as `out` where both are one;
        * STATE, PARAMETER: those that are used;
        * grad_out and grad_new_STATE: always all.

        An output is None where no gradient arrives. The states' gradients lack what comes through
        the operand.
        """
        return self._backward.program

    @cached_property
    def operand_backward(self) -> Program | None:
        """The gradients of the states from the operand's: inputs states and grad_operand."""
        if self.operand is None:
            return None
        return derivative(self.operand, ["grad_operand"])

    @cached_property
    def operations(self) -> frozenset[str]:
        """Names of all operations that a backend lowers for this cell, forward and backward."""
        programs = [self.step_saving, self.backward, self.operand, self.operand_backward]
        return frozenset(
            instruction.operation
            for program in programs
            if program is not None
            for instruction in program.instructions
        )

    @cached_property
    def out_state(self) -> int | None:
        """Number of the first new state that is the same value as `out`; None if there is none."""
        out, *new = self.step.outputs
        return new.index(out) if out in new else None

    @cached_property
    def is_elman(self) -> bool:
        """Whether it is h' = f(W_ih x + b_ih + W_hh h + b_hh), and f's derivative follows from h'.

        That is Elman's network (Finding Structure in Time, 1990) and nn.RNN: one accumulator, one
        state, which y holds, and nothing stored for the backward pass but y.
        """
        return (
            len(self.accumulators) == len(self.states) == 1
            and not self.parameters
            and self.operand is None
            and self.out_state == 0
            and self.step.used == {self.accumulators[0].name}
            and not self.saved
            and self.backward.used <= {"out", "grad_out", "grad_new_" + self.states[0]}
        )

    @cached_property
    def _sums(self) -> Mapping[int, int]:
        """By the number of an `add` in the program that is a gate's zx + zh: the gate's number."""
        program, G = self.program, len(self.gates)
        uses = [number for each in program.instructions for number in each.arguments]
        uses += [number for number in program.outputs if number is not None]
        sums: dict[int, int] = {}
        for number, each in enumerate(program.instructions, len(program.inputs)):
            if each.operation == "add":
                zx, zh = sorted(each.arguments)
                if zx < G and zh == zx + G and uses.count(zx) == uses.count(zh) == 1:
                    sums[number] = zx
        return MappingProxyType(sums)

    @cached_property
    def _backward(self) -> Backward:
        outputs = ["out", *(f"new_{name}" for name in self.states)]
        return plan_backward(self.step, len(self.accumulators), outputs)


#: Built-in cells by their texts.
_BUILT_IN: dict[str, Cell] = {}


def built_in(cell: Cell) -> Cell:
    """Makes a cell known to `Cell.parse`, with its names."""
    _BUILT_IN[cell.text] = cell
    return cell


@functools.lru_cache(maxsize=256)
def _parse(text: str) -> Cell:
    if (known := _BUILT_IN.get(text)) is not None:
        return known
    match = _TEXT.fullmatch(text)
    if match is None:
        raise ValueError(f"expected a cell's text, 'cell 1', 'gates ...' and so on, got {text!r}")
    operand = None if match["operand"] == "none" else Program.parse(match["operand"])
    return Cell(
        "cell",
        tuple(map(str, range(int(match["gates"])))),
        tuple(match["states"].split()),
        tuple(match["parameters"].split()),
        Program.parse(match["program"]),
        operand,
    )


def _inputs(gates: int, states: Sequence[str], parameters: Sequence[str]) -> tuple[str, ...]:
    parts = [f"{part}_{gate}" for part in ("zx", "zh") for gate in range(gates)]
    return (*parts, *states, *parameters)


def _check_names(name: str, gates: int, states: Sequence[str], parameters: Sequence[str]) -> None:
    """Refuses too few of them, and names that this cell's programs have for other things."""
    if not gates or not states:
        raise ValueError(
            f"cell {name}: expected at least one gate and one state, "
            f"got {gates} gates and {len(states)} states"
        )
    outputs = ["out", *(f"new_{state}" for state in states)]
    taken = {*outputs, *(f"grad_{output}" for output in outputs), "grad_operand"}
    taken.update(f"{part}_{gate}" for part in ("z", "zx", "zh") for gate in range(gates))
    for each in (*states, *parameters):
        if each in taken or re.fullmatch(r"saved_\d+", each):
            raise ValueError(
                f"cell {name}: expected names of states and parameters that its programs do not "
                f"use themselves ({', '.join(sorted(taken))}, saved_0, ...), got {each!r}"
            )


def _check_outputs(name: str, what: str, program: Program, count: int) -> None:
    if len(program.outputs) != count or None in program.outputs:
        raise ValueError(
            f"cell {name}: expected {count} outputs of the {what}, none of them None, "
            f"got {program.outputs}"
        )


def _present(value: Value | None) -> Value:
    if value is None:
        raise AssertionError("a part of a sum is used apart from it")
    return value

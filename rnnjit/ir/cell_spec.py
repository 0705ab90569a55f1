"""The `CellSpec`: the computation of one step of a recurrent layer, as a program.

A layer's direction computes, for every row, in this order

    zx = W_ih x_t + b_ih              G gates of H columns
    zh = W_hh a_{t-1} + b_hh          G gates of H columns; a: the recurrent operand
    out, s_1' .. s_S' = program(zx, zh, s_1 .. s_S, p_1 .. p_P, r_1 .. r_R)
    h' = W_hr out                     only if nn.LSTM has a proj_size; not part of the program

with states s [H], parameters p [H], row inputs r [H] that each row has its own of (such as noise),
and a program that is pointwise over the H hidden units. The operand is a pointwise function of the
previous states and the parameters, by default the first state itself. A cell whose program uses no
zh has no recurrent product: W_hh has no columns then.
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

from rnnjit.ir.backward import Backward, plan_backward
from rnnjit.ir.builder import Builder, Value, trace
from rnnjit.ir.derivative import derivative
from rnnjit.ir.program import Program

_TEXT = re.compile(
    r"cell 1\ngates (?P<gates>\d+)\nstates(?P<states>.*)\nparameters(?P<parameters>.*)\n"
    r"(?:row_inputs(?P<row_inputs>.*)\n)?program (?P<program>.*)\noperand (?P<operand>.*)\n"
)


@dataclass(frozen=True)
class Accumulator:
    """An accumulated matrix product that is an input of a step's pointwise part.

    Attributes:
        name: the input of the step: z_G for a sum, zx_G and zh_G for the parts of gate number G.
        gate: the gate's number.
        part: "sum" for zx + zh, "input" for zx, "hidden" for zh.
    """

    name: str
    gate: int
    part: Literal["sum", "input", "hidden"]

    @property
    def has_input(self) -> bool:
        """Whether it includes W_ih x + b_ih."""
        return self.part != "hidden"

    @property
    def has_hidden(self) -> bool:
        """Whether it includes W_hh a + b_hh."""
        return self.part != "input"


@dataclass(frozen=True, eq=False)
class CellSpec:
    """A recurrent cell. Two cells are equal if their `text` is.

    Attributes:
        name: for display only, not part of the identity.
        gates: names of the gates, for display only; the programs number gates from 0.
        states: names of the states. The first is h; y holds h unless `out` is another value.
        parameters: names of learnt vectors [H] other than weights and biases.
        program: its inputs are zx_0 .. zx_{G-1}, zh_0 .. zh_{G-1}, states, parameters and row
            inputs; its outputs are `out` and the new states.
        operand: its inputs are states and parameters, its output is the recurrent operand; None for
            the first state.
        row_inputs: names of vectors [H] that each row has its own of.

    Raises:
        ValueError: a program has wrong inputs or outputs, there is no gate or no state, or a name
            is reserved for the cell's programs.
    """

    name: str
    gates: tuple[str, ...]
    states: tuple[str, ...]
    parameters: tuple[str, ...]
    program: Program
    operand: Program | None = None
    row_inputs: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_names(self.name, len(self.gates), self.states, (*self.parameters, *self.row_inputs))
        expected = _inputs(len(self.gates), self.states, (*self.parameters, *self.row_inputs))
        if self.program.inputs != expected:
            raise ValueError(
                f"cell {self.name}: expected a program of {', '.join(expected)}, "
                f"got one of {', '.join(self.program.inputs)}"
            )
        _check_outputs(self.name, "program", self.program, 1 + len(self.states))
        if self.operand is not None:
            if self.operand.inputs != (*self.states, *self.parameters):
                given = ", ".join((*self.states, *self.parameters))
                raise ValueError(
                    f"cell {self.name}: expected an operand of {given}, "
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
        row_inputs: Sequence[str] = (),
    ) -> CellSpec:
        """Trace a Python function to a cell.

        Args:
            function: takes zx and zh, tuples with one `Value` per gate, and then states,
                parameters and row inputs, each a `Value`; returns `out` and the new states.
            name: name of the cell.
            gates: names of the gates.
            states: names of the states.
            parameters: names of the parameters.
            operand: a function from the states and the parameters to the recurrent operand; None
                for the first state.
            row_inputs: names of the row inputs.

        Raises:
            ValueError, TypeError: as for `CellSpec` and `rnnjit.ir.trace`.
        """
        count, others = len(gates), (*parameters, *row_inputs)
        _check_names(name, count, states, others)

        def flat(*values: Value) -> Sequence[Value | float]:
            return function(values[:count], values[count : 2 * count], *values[2 * count :])

        program = trace(flat, _inputs(count, states, others))
        recurrent = None if operand is None else trace(operand, [*states, *parameters])
        fields = (name, tuple(gates), tuple(states), tuple(parameters), program, recurrent)
        return CellSpec(*fields, tuple(row_inputs))

    @staticmethod
    def parse(text: str) -> CellSpec:
        """The cell with this `text`: the built-in cell if there is one, else one without names.

        Raises:
            ValueError, TypeError: this is not the text of a cell.
        """
        return _parse(text)

    @cached_property
    def text(self) -> str:
        """The cell in a canonical form that `parse` reads."""
        row_inputs = f"{' '.join(['row_inputs', *self.row_inputs])}\n" if self.row_inputs else ""
        return (
            f"cell 1\ngates {len(self.gates)}\n{' '.join(['states', *self.states])}\n"
            f"{' '.join(['parameters', *self.parameters])}\n{row_inputs}"
            f"program {self.program.text}\n"
            f"operand {'none' if self.operand is None else self.operand.text}\n"
        )

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the text, in hex: the cell's identity in caches, symbols and artifacts."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        return self.digest == other.digest if isinstance(other, CellSpec) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        return f"<cell {self.name} {self.digest[:12]}>"

    def __reduce__(self) -> tuple[object, ...]:
        fields = (self.name, self.gates, self.states, self.parameters, self.program, self.operand)
        return CellSpec, (*fields, self.row_inputs)

    def __deepcopy__(self, memo: object) -> CellSpec:
        return self

    @cached_property
    def accumulators(self) -> tuple[Accumulator, ...]:
        """The accumulators, gate by gate: one if the program uses only zx + zh, else two.

        GRU's gate n uses zx and zh separately, so it has two: the input part, then the hidden part.
        The gates of a cell without a recurrent product have the input part alone.
        """
        found: list[Accumulator] = []
        for gate in range(len(self.gates)):
            if not self.has_product:
                found.append(Accumulator(f"zx_{gate}", gate, "input"))
            elif gate in self._sums.values():
                found.append(Accumulator(f"z_{gate}", gate, "sum"))
            else:
                found.append(Accumulator(f"zx_{gate}", gate, "input"))
                found.append(Accumulator(f"zh_{gate}", gate, "hidden"))
        return tuple(found)

    @cached_property
    def step(self) -> Program:
        """The forward step: to `out` and new states.

        Its inputs are the accumulators, states, parameters and row inputs.
        """
        names = [accumulator.name for accumulator in self.accumulators]
        names += [*self.states, *self.parameters, *self.row_inputs]
        builder = Builder(names)
        by_name = dict(zip(names, builder.inputs, strict=True))
        # None for the parts of a sum, which nothing else uses.
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
        """Numbers of the step's values that are saved for the backward pass, besides states."""
        return self._backward.saved

    @cached_property
    def step_saving(self) -> Program:
        """The step with the saved values as additional outputs."""
        step = self.step
        return Program(step.inputs, step.instructions, step.outputs + self.saved)

    @property
    def backward(self) -> Program:
        """The gradients of the step's inputs, per row.

        They are those of accumulators, states, parameters and row inputs, in this order.

        Its inputs are, in this order:

        * saved_0, saved_1, ...: the outputs of `step_saving` after out and the new states;
        * out, new_STATE: the outputs of the step that it uses; `out` if a new state is the same;
        * STATE, PARAMETER, ROW_INPUT: those that it uses;
        * grad_out and grad_new_STATE: always all of them.

        An output is None if no gradient reaches it. The gradients of the states do not include the
        gradient through the operand.
        """
        return self._backward.program

    @cached_property
    def operand_backward(self) -> Program | None:
        """From states, parameters and grad_operand to the gradients of states and parameters."""
        if self.operand is None:
            return None
        return derivative(self.operand, ["grad_operand"])

    @cached_property
    def operations(self) -> frozenset[str]:
        """Names of all operations that a backend must lower for this cell, forward and backward."""
        programs = [self.step_saving, self.backward, self.operand, self.operand_backward]
        return frozenset(
            instruction.operation
            for program in programs
            if program is not None
            for instruction in program.instructions
        )

    @cached_property
    def has_product(self) -> bool:
        """Whether the program uses zh of any gate."""
        gates = len(self.gates)
        return not self.program.used.isdisjoint(self.program.inputs[gates : 2 * gates])

    @property
    def is_built_in(self) -> bool:
        """Whether it is the cell of one of torch's layers."""
        return self.text in _BUILT_IN

    @cached_property
    def out_state(self) -> int | None:
        """Number of the first new state that is the same value as `out`; None if there is none."""
        out, *new = self.step.outputs
        return new.index(out) if out in new else None

    @cached_property
    def is_elman(self) -> bool:
        """Whether h' = f(W_ih x + b_ih + W_hh h + b_hh), with a derivative of f that h' determines.

        This is Elman's network (Finding Structure in Time, 1990) and nn.RNN: one accumulator, one
        state, which y holds, and only y is saved for the backward pass.
        """
        return (
            len(self.accumulators) == len(self.states) == 1
            and not self.parameters
            and not self.row_inputs
            and self.has_product
            and self.operand is None
            and self.out_state == 0
            and self.step.used == {self.accumulators[0].name}
            and not self.saved
            and self.backward.used <= {"out", "grad_out", "grad_new_" + self.states[0]}
        )

    @cached_property
    def _sums(self) -> Mapping[int, int]:
        """Maps the number of each `add` that is a gate's zx + zh to the number of the gate."""
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
_BUILT_IN: dict[str, CellSpec] = {}


def built_in(cell: CellSpec) -> CellSpec:
    """Register a cell so that `CellSpec.parse` returns it, with its names."""
    _BUILT_IN[cell.text] = cell
    return cell


@functools.lru_cache(maxsize=256)
def _parse(text: str) -> CellSpec:
    if (known := _BUILT_IN.get(text)) is not None:
        return known
    match = _TEXT.fullmatch(text)
    if match is None:
        raise ValueError(f"expected a cell's text, 'cell 1', 'gates ...' and so on, got {text!r}")
    operand = None if match["operand"] == "none" else Program.parse(match["operand"])
    return CellSpec(
        "cell",
        tuple(map(str, range(int(match["gates"])))),
        tuple(match["states"].split()),
        tuple(match["parameters"].split()),
        Program.parse(match["program"]),
        operand,
        tuple((match["row_inputs"] or "").split()),
    )


def _inputs(gates: int, states: Sequence[str], parameters: Sequence[str]) -> tuple[str, ...]:
    parts = [f"{part}_{gate}" for part in ("zx", "zh") for gate in range(gates)]
    return (*parts, *states, *parameters)


def _check_names(name: str, gates: int, states: Sequence[str], parameters: Sequence[str]) -> None:
    """Reject missing gates or states, and names that are reserved for the cell's programs."""
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
        raise AssertionError("a part of a sum is used outside of the sum")
    return value

"""Pointwise programs: straight-line lists of operations on values, and their evaluation.

The values of a program are numbered: first its inputs, then the result of each instruction (static
single assignment; Cytron et al. 1991). The constructor makes a program canonical: common
subexpressions are shared, dead instructions are removed, and the instructions are in the order of a
depth-first traversal from the outputs, first to last. Nothing else is rewritten: operands are not
swapped, nothing is reassociated and no constant is folded, so that the results are bit-identical to
those of the program as written. Two programs are equal if and only if their texts are.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

from rnnjit.ir.operations import OPERATIONS, Kind

V = TypeVar("V")

_TEXT = re.compile(r"\((?P<inputs>[^()]*)\)(?P<instructions>.*?) return (?P<outputs>[^;()]*)")
_INSTRUCTION = re.compile(r" %(?P<number>\d+) = (?P<operation>\w+)\((?P<arguments>[^()]*)\)")


@dataclass(frozen=True)
class Instruction:
    """One operation. Its `str` is exact, and the same for instructions that are the same.

    Attributes:
        operation: a key of `OPERATIONS`.
        arguments: numbers of its argument values.
        constants: constants that are fixed in the program, such as `clamp`'s bounds.
    """

    operation: str
    arguments: tuple[int, ...] = ()
    constants: tuple[float, ...] = ()

    def __str__(self) -> str:
        # repr gives the shortest decimal that parses to the same float, and keeps the sign of zero.
        given = [f"%{number}" for number in self.arguments] + [repr(c) for c in self.constants]
        return f"{self.operation}({', '.join(given)})"


@dataclass(frozen=True, eq=False)
class Program:
    """A pointwise function of named inputs; the constructor makes it canonical.

        >>> Program(("a", "b"), (Instruction("mul", (0, 1)), Instruction("tanh", (2,))), (3, None))
        Program.parse('(a, b) %2 = mul(%0, %1); %3 = tanh(%2); return %3, none')

    Attributes:
        inputs: names of the inputs, distinct ASCII identifiers. All inputs are numbers.
        instructions: instruction k computes value `len(inputs) + k`.
        outputs: numbers of values; None for an output without a value (no gradient).

    Raises:
        ValueError: an unknown operation, a wrong number of arguments or constants, a value that is
            used before it is computed, or input names that are not distinct ASCII identifiers.
        TypeError: a condition where a number is expected, or the reverse.
    """

    inputs: tuple[str, ...]
    instructions: tuple[Instruction, ...]
    outputs: tuple[int | None, ...]

    def __post_init__(self) -> None:
        _check_names(self.inputs)
        kinds = [Kind.NUMBER] * len(self.inputs)
        for instruction in self.instructions:
            kinds.append(result_kind(instruction, kinds))
        for output in self.outputs:
            if output is not None:
                _check_argument("output", output, Kind.NUMBER, kinds)
        instructions, outputs = _canonical(len(self.inputs), self.instructions, self.outputs)
        object.__setattr__(self, "instructions", instructions)
        object.__setattr__(self, "outputs", outputs)

    @cached_property
    def text(self) -> str:
        """The program on one line; `parse` reads it."""
        first = len(self.inputs)
        lines = [f" %{first + k} = {each};" for k, each in enumerate(self.instructions)]
        outputs = ["none" if number is None else f"%{number}" for number in self.outputs]
        return f"({', '.join(self.inputs)}){''.join(lines)} return {', '.join(outputs)}"

    @staticmethod
    def parse(text: str) -> Program:
        """Parse the `text` of a program.

        Raises:
            ValueError: this is not the text of a program; or as for `Program`.
            TypeError: as for `Program`.
        """
        match = _TEXT.fullmatch(text)
        if match is None:
            raise ValueError(
                f"expected a program '(inputs) %n = operation(...); return %n, ...', got {text!r}"
            )
        inputs = _listed(match["inputs"])
        lines = match["instructions"].split(";")
        if lines.pop():
            raise ValueError(f"expected ';' after every instruction, got {text!r}")
        instructions = [
            _parse_instruction(line, number) for number, line in enumerate(lines, len(inputs))
        ]
        outputs = [
            None if each == "none" else _parse_value(each) for each in _listed(match["outputs"])
        ]
        return Program(tuple(inputs), tuple(instructions), tuple(outputs))

    @cached_property
    def used(self) -> frozenset[str]:
        """Names of the inputs that an instruction or an output reads."""
        numbers = {n for instruction in self.instructions for n in instruction.arguments}
        numbers.update(number for number in self.outputs if number is not None)
        return frozenset(name for k, name in enumerate(self.inputs) if k in numbers)

    def without_inputs(self, names: Iterable[str]) -> Program:
        """The same program without these inputs.

        Raises:
            ValueError: the program uses one of them.
        """
        dropped = set(names)
        if needed := sorted(dropped & self.used):
            raise ValueError(f"expected inputs that are not used, got {', '.join(needed)}")
        kept = [k for k, name in enumerate(self.inputs) if name not in dropped]
        values = range(len(self.inputs), len(self.inputs) + len(self.instructions))
        numbers = {old: new for new, old in enumerate([*kept, *values])}
        return Program(
            tuple(self.inputs[k] for k in kept),
            tuple(_renumbered(each, numbers) for each in self.instructions),
            tuple(None if n is None else numbers[n] for n in self.outputs),
        )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Program):
            return NotImplemented
        return self.text == other.text

    def __hash__(self) -> int:
        return hash(self.text)

    def __repr__(self) -> str:
        return f"Program.parse({self.text!r})"


def evaluate(
    program: Program,
    inputs: Sequence[V],
    operations: Mapping[str, Callable[..., V]],
    constant: Callable[[float], V],
) -> tuple[V | None, ...]:
    """Evaluate or lower a program; each backend passes its own table of operations.

        >>> import operator
        >>> program = Program.parse("(a, b) %2 = constant(2.0); %3 = mul(%2, %0); return %3, %1")
        >>> evaluate(program, [3.0, 4.0], {"mul": operator.mul}, float)
        (6.0, 4.0)

    Args:
        program: the program.
        inputs: one lowered value per input, in the order of `program.inputs`.
        operations: for each operation name, a function of the lowered arguments, followed by the
            operation's constants (`slope`; `low`, `high`) as Python floats.
        constant: lowers a constant.

    Returns:
        One lowered value per output, None for an output that is None.

    Raises:
        ValueError: too few or too many inputs.
        NotImplementedError: an operation is not in the table.
    """
    if len(inputs) != len(program.inputs):
        expected = ", ".join(program.inputs)
        raise ValueError(f"expected {len(program.inputs)} inputs ({expected}), got {len(inputs)}")
    values = list(inputs)
    for instruction in program.instructions:
        name = instruction.operation
        if name == "constant":
            values.append(constant(*instruction.constants))
            continue
        if name not in operations:
            raise NotImplementedError(
                f"operation {name!r} is not lowered: expected one of {', '.join(operations)}"
            )
        arguments = [values[number] for number in instruction.arguments]
        values.append(operations[name](*arguments, *instruction.constants))
    return tuple(None if number is None else values[number] for number in program.outputs)


def result_kind(instruction: Instruction, kinds: Sequence[Kind]) -> Kind:
    """Check an instruction against the kinds of the earlier values; return the kind of its result.

    Raises:
        ValueError, TypeError: as for `Program`.
    """
    name = instruction.operation
    if name not in OPERATIONS:
        raise ValueError(f"unknown operation {name!r}: expected one of {', '.join(OPERATIONS)}")
    operation = OPERATIONS[name]
    if len(instruction.arguments) != len(operation.arguments):
        raise ValueError(
            f"{name}: expected {len(operation.arguments)} arguments, "
            f"got {len(instruction.arguments)}"
        )
    if len(instruction.constants) != len(operation.constants):
        expected = f" ({', '.join(operation.constants)})" if operation.constants else ""
        raise ValueError(
            f"{name}: expected {len(operation.constants)} constants{expected}, "
            f"got {len(instruction.constants)}"
        )
    for constant in instruction.constants:
        if type(constant) is not float:
            raise TypeError(f"{name}: expected constants that are floats, got {constant!r}")
    if name == "clamp" and any(map(math.isnan, instruction.constants)):
        raise ValueError(f"clamp: expected bounds that are numbers, got {instruction.constants}")
    for number, kind in zip(instruction.arguments, operation.arguments, strict=True):
        _check_argument(name, number, kind, kinds)
    return operation.result


def _check_argument(what: str, number: int, kind: Kind, kinds: Sequence[Kind]) -> None:
    if not 0 <= number < len(kinds):
        raise ValueError(f"{what}: expected a value from %0 to %{len(kinds) - 1}, got %{number}")
    if kinds[number] is not kind:
        raise TypeError(
            f"{what}: expected a {kind.value}, got %{number}, which is a {kinds[number].value}"
        )


def _check_names(names: Sequence[str]) -> None:
    for name in names:
        if not (name.isidentifier() and name.isascii()):
            raise ValueError(f"expected names of inputs that are ASCII identifiers, got {name!r}")
    if len(set(names)) != len(names):
        raise ValueError(f"expected names of inputs that differ, got {', '.join(names)}")


def _renumbered(
    instruction: Instruction, numbers: Mapping[int, int] | Sequence[int]
) -> Instruction:
    arguments = tuple(numbers[number] for number in instruction.arguments)
    return Instruction(instruction.operation, arguments, instruction.constants)


def _canonical(
    first: int, instructions: Sequence[Instruction], outputs: Sequence[int | None]
) -> tuple[tuple[Instruction, ...], tuple[int | None, ...]]:
    """Share equal instructions; keep those that outputs need, in depth-first order."""
    # For each value the first value with the same instruction, which replaces it.
    shared = list(range(first))
    computed: dict[str, int] = {}
    rewritten: dict[int, Instruction] = {}
    for number, instruction in enumerate(instructions, first):
        rewritten[number] = _renumbered(instruction, shared)
        shared.append(computed.setdefault(str(rewritten[number]), number))

    numbers = {k: k for k in range(first)}
    kept: list[Instruction] = []
    # An explicit stack, since long programs would exceed Python's recursion limit.
    waiting = [shared[number] for number in reversed(outputs) if number is not None]
    while waiting:
        number = waiting[-1]
        if number in numbers:
            waiting.pop()
            continue
        instruction = rewritten[number]
        missing = [each for each in instruction.arguments if each not in numbers]
        if missing:
            waiting += reversed(missing)
            continue
        numbers[waiting.pop()] = first + len(kept)
        kept.append(_renumbered(instruction, numbers))
    return tuple(kept), tuple(None if n is None else numbers[shared[n]] for n in outputs)


def _listed(text: str) -> list[str]:
    return text.split(", ") if text else []


def _parse_instruction(line: str, number: int) -> Instruction:
    match = _INSTRUCTION.fullmatch(line)
    if match is None or int(match["number"]) != number:
        raise ValueError(f"expected an instruction '%{number} = operation(...)', got {line!r}")
    given = _listed(match["arguments"])
    values = [each for each in given if each.startswith("%")]
    try:
        constants = tuple(float(each) for each in given[len(values) :])
    except ValueError:
        raise ValueError(f"expected values and then constants, got {line!r}") from None
    return Instruction(match["operation"], tuple(_parse_value(each) for each in values), constants)


def _parse_value(text: str) -> int:
    if re.fullmatch(r"%\d+", text) is None:
        raise ValueError(f"expected a value such as %0, got {text!r}")
    return int(text[1:])

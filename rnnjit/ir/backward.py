"""The backward pass of a step: its program, and the values that the forward pass must save for it.

Some values of a step are available without saving: the previous states, the outputs (`out` and the
new states) and the parameters. All other values that the gradient needs are either saved by the
forward pass or recomputed from available ones (Griewank & Walther, Evaluating Derivatives, 2nd ed.
2008, chapter 12). Candidates for saving are the values that the derivative's formulas use. A
candidate is dropped if the forward instructions can recompute it from available values and the
other candidates. If more candidates remain than there are accumulators, the accumulators are saved
instead.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from rnnjit.ir.builder import Builder, Value
from rnnjit.ir.derivative import backpropagate, replay
from rnnjit.ir.operations import OPERATIONS, Kind
from rnnjit.ir.program import Instruction, Program


@dataclass(frozen=True)
class Backward:
    """The gradient of a step.

    Attributes:
        saved: numbers of the step's values that the forward pass saves, ordered by the last
            accumulator that each depends on. If there is one for each accumulator, it can be stored
            in the memory of that accumulator.
        program: computes the gradients of the step's inputs, in their order.
    """

    saved: tuple[int, ...]
    program: Program


def plan_backward(step: Program, accumulators: int, outputs: Sequence[str]) -> Backward:
    """Derive the backward pass of a step.

    Args:
        step: the step; its first inputs are the accumulators, then come states and parameters.
        accumulators: the number of accumulators.
        outputs: names of the step's outputs (`out` and then the new states) in the new program.

    Returns:
        The plan. The inputs of its program are saved_0, saved_1, ..., then those `outputs`, states
        and parameters that it uses, then grad_NAME for each NAME in `outputs`. If `out` is also a
        new state, its gradient is that of the state plus that of `out`.
    """
    gradients = [f"grad_{name}" for name in outputs]
    builder = Builder([*step.inputs, *gradients])
    values = replay(builder, step, builder.inputs[: len(step.inputs)])
    seeds = list(zip(step.outputs, builder.inputs[len(step.inputs) :], strict=True))
    ordered = [(number, seed) for number, seed in seeds[1:] + seeds[:1] if number is not None]
    found = backpropagate(builder, step, values, ordered)[: len(step.inputs)]
    needed = [gradient.number for gradient in found if gradient is not None]

    graph = _Graph(builder)
    forward = {value.number: number for number, value in enumerate(values)}
    names = {values[n].number: name for n, name in _reversed(step.outputs, outputs)}
    names |= {k: name for k, name in enumerate(step.inputs) if k >= accumulators}
    names |= {seed.number: name for (_, seed), name in zip(seeds, gradients, strict=True)}

    candidates = {n for n in forward if n not in names and graph.can_be_stored(n)}
    used = graph.reached(needed, candidates | names.keys()) & candidates
    # The order does not matter: values depend only on earlier values, so there are no cycles.
    saved = {n for n in used if not graph.gives(n, (used - {n}) | names.keys())}
    if len(saved) > accumulators:
        saved = graph.reached(needed, names) & set(range(accumulators))
    order = sorted(saved, key=lambda n: (max(graph.inputs_of(n) & set(range(accumulators))), n))

    stored = {number: f"saved_{k}" for k, number in enumerate(order)}
    inputs = [*stored.values(), *outputs, *step.inputs[accumulators:], *gradients]
    whole = graph.rebuilt(inputs, names | stored, found)
    unused = [name for name in inputs if name not in whole.used and name not in gradients]
    return Backward(tuple(forward[number] for number in order), whole.without_inputs(unused))


def _reversed(numbers: Sequence[int | None], names: Sequence[str]) -> list[tuple[int, str]]:
    """Pairs from last to first, so that a dict keeps the first of several names of a value."""
    pairs = list(zip(numbers, names, strict=True))
    return [(number, name) for number, name in reversed(pairs) if number is not None]


class _Graph:
    """The dependencies between the values of a builder, by their numbers."""

    def __init__(self, builder: Builder) -> None:
        self._instructions: list[Instruction | None] = [None] * len(builder.inputs)
        self._instructions += builder.instructions

    def can_be_stored(self, number: int) -> bool:
        """Whether a value can be saved: it is a number, and not a constant."""
        instruction = self._instructions[number]
        if instruction is None:
            return True
        kind = OPERATIONS[instruction.operation].result
        return kind is Kind.NUMBER and instruction.operation != "constant"

    def arguments(self, number: int) -> tuple[int, ...]:
        instruction = self._instructions[number]
        return () if instruction is None else instruction.arguments

    def reached(self, numbers: Iterable[int], ends: Collection[int]) -> set[int]:
        """These values and all that they depend on; the search stops at `ends`."""
        found: set[int] = set()
        waiting = list(numbers)
        while waiting:
            number = waiting.pop()
            if number not in found:
                found.add(number)
                if number not in ends:
                    waiting += self.arguments(number)
        return found

    def inputs_of(self, number: int) -> set[int]:
        """The inputs that a value depends on."""
        return {n for n in self.reached([number], ()) if self._instructions[n] is None}

    def gives(self, number: int, known: Collection[int]) -> bool:
        """Whether a value can be computed from known values and constants."""
        reached = self.reached([number], known)
        return all(n in known or self._instructions[n] is not None for n in reached)

    def rebuilt(
        self, inputs: Sequence[str], names: dict[int, str], outputs: Iterable[Value | None]
    ) -> Program:
        """A program for these outputs, in which the values in `names` are inputs."""
        builder = Builder(inputs)
        by_name = dict(zip(inputs, builder.inputs, strict=True))
        values: dict[int, Value] = {}
        for number, instruction in enumerate(self._instructions):
            if number in names:
                values[number] = by_name[names[number]]
            elif instruction is not None and all(n in values for n in instruction.arguments):
                arguments = [values[n] for n in instruction.arguments]
                values[number] = builder.append(
                    instruction.operation, arguments, instruction.constants
                )
        return builder.finish(None if each is None else values[each.number] for each in outputs)

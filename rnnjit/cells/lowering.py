"""From the expressions of a traced step to a `CellSpec`, and to the tensors that it takes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from rnnjit.cells import expressions as source
from rnnjit.cells.expressions import Expression, reached
from rnnjit.cells.graph import Node
from rnnjit.cells.products import LinearMap
from rnnjit.ir import GRU, LSTM, RNN_RELU, RNN_TANH, CellSpec, Program
from rnnjit.ir.builder import Builder, Value

if TYPE_CHECKING:
    from rnnjit.cells.tracer import Tracer

aten: Any = torch.ops.aten

#: Names that a cell's programs use themselves.
_RESERVED = re.compile(r"out|(new|grad)_.*|(z|zx|zh|saved)_\d+|operand_|output_")

#: A block of a linear map: the number of the map, and of the block.
_Block = tuple[int, ...]


@dataclass(frozen=True)
class Lowered:
    """A step as a cell, and the nodes of the tensors that it takes.

    Attributes:
        spec: the cell.
        input_size: I, or 0 if the cell takes row inputs alone.
        bias: whether the layer has biases.
        weights: of a direction, in the order of `LayerSpec.weight_shapes`.
        row_inputs: of a direction.
    """

    spec: CellSpec
    input_size: int
    bias: bool
    weights: tuple[Node, ...]
    row_inputs: tuple[Node, ...]


def lower(
    tracer: Tracer, outputs: Sequence[Expression], name: str, states: Sequence[str]
) -> Lowered:
    """Lower a trace.

    Args:
        tracer: the trace.
        outputs: the output and the new states.
        name: the name of the cell.
        states: the names of the states.
    """
    return _Lowering(tracer, outputs).lowered(name, tuple(states))


class _Lowering:
    def __init__(self, tracer: Tracer, outputs: Sequence[Expression]) -> None:
        self._tracer, self._outputs = tracer, outputs
        live = reached(outputs)
        self._product = any(value.operation == source.PRODUCT for value in live)
        operand = tracer.products.operand if self._product else None
        self._operand = operand
        self._live = live if operand is None else reached([*outputs, operand])
        self._inputs = [v.place for v in live if v.operation == source.INPUT]
        self._gates = self._all_gates(live)
        #: The block of a map of x that is each gate's zx, by its gate.
        self._zx = self._paired(live) if self._product else dict(enumerate(self._inputs))
        if len(self._zx) < len(self._gates):
            self._zx = {}
        self._gate_of = {place: gate for gate, place in self._zx.items()}
        self._parameters = [v for v in self._live if v.operation == source.PARAMETER]
        self._rows = [
            v
            for v in self._live
            if v.operation in (source.ROW, source.DRAW)
            or (v.operation == source.INPUT and v.place not in self._gate_of)
        ]

    def _all_gates(self, live: list[Expression]) -> list[_Block]:
        """The blocks of the recurrent product, or of the maps of x if there is none."""
        if not self._product:
            return sorted(self._inputs)
        used = {v.place[0] for v in live if v.operation == source.PRODUCT}
        maps = enumerate(self._tracer.products.recurrent)
        return [(k, block) for k, each in maps if k in used for block in range(each.blocks)]

    def _paired(self, live: list[Expression]) -> dict[int, _Block]:
        """For each gate the block of a map of x that belongs to it.

        It is added to the gate's product; if there is none, it is the block of the same number, or
        the next one that is left.
        """
        paired: dict[int, _Block] = {}
        gate_of = {place: gate for gate, place in enumerate(self._gates)}
        for value in live:
            if value.operation == "add" and (parts := _zx_and_zh(value)) is not None:
                paired.setdefault(gate_of[parts[1].place], parts[0].place)
        left = [place for place in sorted(self._inputs) if place not in paired.values()]
        for gate in range(len(self._gates)):
            if gate not in paired and left:
                same = next((place for place in left if place[1] == self._gates[gate][1]), left[0])
                paired[gate] = same
                left.remove(same)
        # A block for two gates serves neither: zx of one is no zx of the other.
        return paired if len(set(paired.values())) == len(paired) else {}

    def lowered(self, name: str, states: tuple[str, ...]) -> Lowered:
        G = max(len(self._gates), 1)
        if any(_RESERVED.fullmatch(each) or not each.isascii() for each in states):
            states = tuple(f"s{k}" for k in range(len(states)))
        names = [f"{part}_{gate}" for part in ("zx", "zh") for gate in range(G)]
        parameters = _fresh_names("p", len(self._parameters), states)
        rows = _fresh_names("r", len(self._rows), states)
        program = self._program([*names, *states, *parameters, *rows], G, len(states))
        operand = self._operand_program([*states, *parameters], len(states))
        gates = tuple(map(str, range(G)))
        spec = CellSpec(name, gates, states, parameters, program, operand, rows)
        input_size = self._tracer.input_size if self._zx else 0
        maps = [self._tracer.products.of_input[k] for k, _ in self._zx.values()]
        if self._product:
            maps += [self._tracer.products.recurrent[k] for k, _ in self._gates]
        bias = any(each.bias is not None for each in maps)
        weights = (*self._weights(G, bias), *(self._node(each) for each in self._parameters))
        return Lowered(
            _built_in(spec), input_size, bias, weights, tuple(map(self._node, self._rows))
        )

    def _program(self, names: list[str], G: int, states: int) -> Program:
        builder = Builder(names)
        given = builder.inputs
        values: dict[int, Value] = {}
        for k, each in enumerate([*self._parameters, *self._rows]):
            values[each.number] = given[2 * G + states + k]
        for value in reached(self._outputs):
            if value.operation == source.STATE:
                values[value.number] = given[2 * G + value.place[0]]
            elif value.operation == source.PRODUCT:
                values[value.number] = given[G + self._gates.index(value.place)]
            elif value.operation == source.INPUT and value.place in self._gate_of:
                values[value.number] = given[self._gate_of[value.place]]
            elif value.number not in values:
                arguments = value.arguments
                if value.operation == "add" and (parts := _zx_and_zh(value)) is not None:
                    # In the order of torch's cells, whose digest it is.
                    arguments = parts
                values[value.number] = builder.append(
                    value.operation, [values[a.number] for a in arguments], value.constants
                )
        return builder.finish(values[each.number] for each in self._outputs)

    def _operand_program(self, names: list[str], states: int) -> Program | None:
        operand = self._operand
        if operand is None or (operand.operation == source.STATE and operand.place == (0,)):
            return None
        builder = Builder(names)
        values: dict[int, Value] = {}
        for k, each in enumerate(self._parameters):
            values[each.number] = builder.inputs[states + k]
        for value in reached([operand]):
            if value.operation == source.STATE:
                values[value.number] = builder.inputs[value.place[0]]
            elif value.number not in values:
                values[value.number] = builder.append(
                    value.operation, [values[a.number] for a in value.arguments], value.constants
                )
        return builder.finish([values[operand.number]])

    def _weights(self, G: int, bias: bool) -> list[Node]:
        """w_ih, w_hh, b_ih and b_hh."""
        products, H = self._tracer.products, self._tracer.H
        of_x = [(products.of_input[self._zx[g][0]], self._zx[g][1]) for g in sorted(self._zx)]
        of_h: list[tuple[LinearMap, int]] = []
        if self._product:
            of_h = [(products.recurrent[k], block) for k, block in self._gates]
        found = [
            self._stacked([(m.weight, b) for m, b in maps], (G * H, 0)) for maps in (of_x, of_h)
        ]
        if bias:
            for maps in (of_x, of_h):
                found.append(self._stacked([(m.bias, b) for m, b in maps], (G * H,)))
        return found

    def _stacked(self, blocks: list[tuple[Node | None, int]], empty: tuple[int, ...]) -> Node:
        """Blocks of rows below each other; the very tensor where they are all of it."""
        H, call = self._tracer.H, self._tracer.call
        if not blocks or all(node is None for node, _ in blocks):
            return self._zeros(empty)
        runs: list[tuple[Node | None, int, int]] = []
        for node, block in blocks:
            if runs and runs[-1][0] is node and runs[-1][2] == block and node is not None:
                runs[-1] = (node, runs[-1][1], block + 1)
            else:
                runs.append((node, block, block + 1))
        parts = []
        for node, first, last in runs:
            if node is None:
                parts.append(self._zeros((H,)))
            elif node.shape[0] == (last - first) * H:
                parts.append(node)
            else:
                parts.append(call(aten.slice.Tensor, node, 0, first * H, last * H))
        return parts[0] if len(parts) == 1 else call(aten.cat.default, parts)

    def _zeros(self, shape: tuple[int, ...]) -> Node:
        tracer = self._tracer
        options = {"dtype": tracer.dtype, "device": tracer.device}
        return tracer.call(aten.zeros.default, list(shape), **options)

    def _node(self, leaf: Expression) -> Node:
        """The node of a parameter or a row input."""
        if leaf.node is not None:
            return leaf.node
        number, block = leaf.place
        tracer = self._tracer
        result, H = tracer.products.of_input[number].result, tracer.H
        assert result is not None
        if result.shape[-1] == H:
            return result
        return tracer.call(aten.slice.Tensor, result, -1, block * H, (block + 1) * H)


def _zx_and_zh(add: Expression) -> tuple[Expression, Expression] | None:
    """The summands of zx + zh, in this order; None for another sum."""
    first, second = add.arguments
    found = {each.operation: each for each in (first, second)}
    if source.INPUT in found and source.PRODUCT in found:
        return found[source.INPUT], found[source.PRODUCT]
    return None


def _fresh_names(prefix: str, count: int, taken: Sequence[str]) -> tuple[str, ...]:
    """Names that are none of the states'."""
    while any(name.startswith(prefix) and name[len(prefix) :].isdigit() for name in taken):
        prefix += "_"
    return tuple(f"{prefix}{k}" for k in range(count))


def _built_in(spec: CellSpec) -> CellSpec:
    """The built-in cell that computes the same, or the cell."""
    for cell in (RNN_TANH, RNN_RELU, LSTM, GRU):
        same = len(cell.states) == len(spec.states) and len(cell.gates) == len(spec.gates)
        if same and not (spec.parameters or spec.row_inputs or spec.operand):
            ours = spec.program
            renamed = Program(cell.program.inputs, ours.instructions, ours.outputs)
            if renamed == cell.program:
                return cell
    return spec

"""The pointwise part of a cell's step and of its gradient, on some rows and hidden units.

The PrimFuncs here read a kernel's argument block, and so the memory of all states and of all that
is saved for the backward pass. Addresses are in bytes, distances of rows in elements.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from tvm.tirx.script.builder import ir as T

from rnnjit.codegen.cell_layout import CellLayout
from rnnjit.codegen.pointwise import lower
from rnnjit.ir import CellSpec
from rnnjit_tvm.arguments import Arguments, BackwardArguments, ForwardArguments
from rnnjit_tvm.pointwise import vectors
from rnnjit_tvm.tensorir import Lanes, Module, either, integer, when
from rnnjit_tvm.time_loop import (
    Masked,
    backward_arguments,
    columns_of_x,
    each_vector,
    forward_arguments,
    of_parameter,
    of_state,
)


def add_step(module: Module, cell: CellSpec) -> None:
    """PrimFunc `cell_step`: the step of some rows and hidden units, from their pre-activations.

    `cell_step(block, d, row, b, stride, rows, first, last, zx, ld_zx, zh, ld_zh, h, ld_h, fresh,
    out, ld_out)` where

    * `block` is a `ForwardArguments`, and `d` the direction;
    * `row` and `b` number the first of `rows` rows, among all rows and within the batch; the next
      one is `stride` further on in both;
    * `first` and `last` bound the vectors of hidden units;
    * `zx` and `zh` are the pre-activations `[rows, V, G, lanes]`, rows `ld_zx` and `ld_zh` apart.
      Where the cell only uses sums, `zx` holds these, and `zh` is not read;
    * `h` is the first state before the step, rows `ld_h` apart. The others are what the block says:
      the initial ones if `fresh` is 1, else those that the step before wrote;
    * `out` gets the outputs, rows `ld_out` apart.

    It writes the new states, and what is recorded of every step if the block has memory for that.
    """

    def body(block: Any, *sizes: Any) -> None:
        values = forward_arguments(block).values
        if not cell.saved:
            _emit_step(module.lanes, cell, block, sizes, keep=False)
            return
        with T.If(values != 0):
            with T.Then():
                _emit_step(module.lanes, cell, block, sizes, keep=True)
            with T.Else():
                _emit_step(module.lanes, cell, block, sizes, keep=False)

    names = ["d", "row", "b", "stride", "rows", "first", "last", "zx", "ld_zx", "zh", "ld_zh"]
    names += ["h", "ld_h", "fresh", "out", "ld_out"]
    module.add("cell_step", ["block"], names, body, dtype="int64")


def _emit_step(
    lanes: Lanes, cell: CellSpec, block: Any, sizes: tuple[Any, ...], *, keep: bool
) -> None:
    d, row, b, stride, rows, first, last, zx, ld_zx, zh, ld_zh, h, ld_h, fresh, *out = sizes
    a, layout, count = forward_arguments(block), CellLayout(cell), len(cell.saved)
    place, record = T.bind((d * a.B + b) * a.H), T.bind(row * a.D + d)
    ld_state, ld_record = T.bind(a.H * stride), T.bind(a.D * a.H * stride)
    z, hidden, h_before = lanes.memory(zx), lanes.memory(zh), lanes.memory(h)
    to, ld_out = lanes.memory(out[0]), out[1]
    states = []
    for k in range(1, len(cell.states)):
        initial, latest, every = (of_state(block, ForwardArguments, k, n) for n in range(3))
        before = lanes.after(either(fresh != 0, initial, latest), place)
        states.append((lanes.memory(before), lanes.memory(lanes.after(latest, place)), every))
    vectors_of = _parameters(lanes, cell, block, ForwardArguments, d, cell.step.used)
    of_rows, wide = _row_inputs(lanes, cell, a, d, row, cell.step.used), columns_of_x(a, cell)
    ld_x = T.bind(wide * stride) if of_rows else None
    recorded = [lanes.memory(lanes.after(every, record * a.H)) for *_, every in states]
    saved = lanes.memory(lanes.after(a.values, record * a.H * count)) if keep else None

    def accumulator(r: Any, v: Any, gate: int, part: str) -> Any:
        at = T.bind((v * layout.gates + gate) * lanes.count)
        if not layout.apart or part == "input":
            return T.bind(z[lanes.at(r * ld_zx + at)])
        if part == "hidden":
            return T.bind(hidden[lanes.at(r * ld_zh + at)])
        return T.bind(z[lanes.at(r * ld_zx + at)] + hidden[lanes.at(r * ld_zh + at)])

    def one(r: Any, v: Any, masked: Masked) -> None:
        at = T.bind(v * lanes.count)
        here = T.bind(r * ld_state + at)
        inputs = {each.name: accumulator(r, v, each.gate, each.part) for each in cell.accumulators}
        if cell.states[0] in cell.step.used:
            inputs[cell.states[0]] = masked.load(h_before, r * ld_h + at)
        for name, (before, *_) in zip(cell.states[1:], states, strict=True):
            inputs[name] = masked.load(before, here)
        for name, memory in vectors_of.items():
            inputs[name] = masked.load(memory, at)
        for name, memory in of_rows.items():
            inputs[name] = masked.load(memory, r * ld_x + at)
        program = cell.step_saving if keep else cell.step
        new, _, *found = lower(program, vectors(lanes), inputs)
        masked.store(to, r * ld_out + at, new)
        for value, (_, after, every), memory in zip(found, states, recorded, strict=False):
            masked.store(after, here, value)
            with when(every != 0):
                masked.store(memory, r * ld_record + at, value)
        for k, value in enumerate(found[len(states) :]):
            masked.store(saved, r * ld_record * count + k * a.H + at, value)

    each_vector(lanes, rows, (first, last), a.H, one)


def _parameters(
    lanes: Lanes, cell: CellSpec, block: Any, kind: type[Arguments], d: Any, used: Collection[str]
) -> dict[str, Any]:
    """The memory of each of a cell's parameters that are used."""
    return {
        name: lanes.memory(of_parameter(block, kind, cell, d, number, 0))
        for number, name in enumerate(cell.parameters)
        if name in used
    }


def _row_inputs(
    lanes: Lanes, cell: CellSpec, a: Arguments, d: Any, row: Any, used: Collection[str]
) -> dict[str, Any]:
    """The memory of each row input that is used, from row `row` on."""
    return {
        name: lanes.memory(_row_input_at(lanes, cell, a, a.x, d, row, number))
        for number, name in enumerate(cell.row_inputs)
        if name in used
    }


def _row_input_at(
    lanes: Lanes, cell: CellSpec, a: Arguments, x: Any, d: Any, row: Any, number: int
) -> Any:
    """The address of a row input in the row `row` of x, or of its gradient."""
    column = (d * len(cell.row_inputs) + number) * a.H
    return lanes.after(x, row * columns_of_x(a, cell) + a.I + column)


def add_step_backward(module: Module, cell: CellSpec) -> None:
    """PrimFunc `cell_step_backward`: dz, and the gradients of the states before.

    `cell_step_backward(block, d, row, b, stride, rows, first, last, before, fresh, grad_out,
    ld_grad_out, zeros)` where

    * `block` is a `BackwardArguments`; `d` ... `last` are as in `cell_step`;
    * `before` numbers the row of the step before that precedes row `row`; the states before are
      the initial ones if `fresh` is 1;
    * `grad_out` has the gradients of the outputs, rows `ld_grad_out` apart, or is 0 for zeros;
    * `zeros` is the address of a row of zeros.

    The gradients of the states are read and written in place. That of the first state is added to
    `grad_out`, unless the output is projected. It is left alone if nothing but W_hh reads the state
    before. Behind dz are the gradients of the parameters, of each row; those of the row inputs are
    written to their columns of grad_x, if it is wanted.
    """

    def body(block: Any, *sizes: Any) -> None:
        _StepBackward(module.lanes, cell, block, sizes).emit()

    names = ["d", "row", "b", "stride", "rows", "first", "last", "before", "fresh"]
    names += ["grad_out", "ld_grad_out", "zeros"]
    module.add("cell_step_backward", ["block"], names, body, dtype="int64")


#: Memory, and the distance of its rows.
_Rows = tuple[Any, Any]


class _StepBackward:
    """Code of `cell_step_backward`."""

    def __init__(self, lanes: Lanes, cell: CellSpec, block: Any, sizes: tuple[Any, ...]) -> None:
        self._lanes, self._cell, self._block = lanes, cell, block
        self._a, self._layout = backward_arguments(block), CellLayout(cell)
        (self._d, self._row, self._b, self._stride, self._rows, self._first, self._last, *rest) = (
            sizes
        )
        self._before, fresh, self._grad_out, self._ld_grad_out, self._zeros = rest
        self._fresh = T.bind(fresh != 0)
        a = self._a
        self._record, self._place = (
            T.bind((self._row * a.D + self._d) * a.H),
            T.bind((self._d * a.B + self._b) * a.H),
        )
        self._ld_record, self._ld_state = (
            T.bind(a.D * a.H * self._stride),
            T.bind(a.H * self._stride),
        )

    def _values(self) -> dict[str, _Rows]:
        """The memory of each input of the gradient's program, but for gradients."""
        a, lanes, cell, block = self._a, self._lanes, self._cell, self._block
        used, count = cell.backward.used, len(cell.saved)
        found: dict[str, _Rows] = {}

        def add(name: str, place: Any, ld: Any) -> None:
            if name in used:
                found[name] = lanes.memory(place), T.bind(ld)

        def previous(name: str, first: Any, every: Any) -> None:
            earlier = (self._before * a.D + self._d) * a.H
            initial, later = lanes.after(first, self._place), lanes.after(every, earlier)
            ld = T.Select(self._fresh, self._ld_state, self._ld_record)
            add(name, either(self._fresh, initial, later), ld)

        out = either(a.P != a.H, a.outputs, a.y)
        add("out", lanes.after(out, self._record), self._ld_record)
        previous(cell.states[0], a.h0, a.y)
        for k, name in enumerate(cell.states[1:], 1):
            initial, every = (of_state(block, BackwardArguments, k, n) for n in range(2))
            previous(name, initial, every)
            add(f"new_{name}", lanes.after(every, self._record), self._ld_record)
        for k in range(count):
            place = lanes.after(a.values, self._record * count, a.H * k)
            add(f"saved_{k}", place, self._ld_record * count)
        for name, memory in _parameters(
            *(lanes, cell, block, BackwardArguments, self._d, used)
        ).items():
            found[name] = memory, integer(0)
        for name, memory in _row_inputs(lanes, cell, a, self._d, self._row, used).items():
            found[name] = memory, T.bind(columns_of_x(a, cell) * self._stride)
        return found

    def _gradients(self) -> list[Any]:
        """The addresses of the gradients of the states, which run through the steps."""
        a, lanes, grads = self._a, self._lanes, []
        for k in range(len(self._cell.states)):
            if k == 0:
                given, own = a.grad_h0, lanes.after(a.scratch, a.grad_h)
                place = T.bind((self._d * a.B + self._b) * a.P)
            else:
                given = of_state(self._block, BackwardArguments, k, 3)
                own = lanes.after(a.scratch, a.grad_states, a.D * a.B * a.H * (k - 1))
                place = self._place
            grads.append(lanes.after(either(given != 0, given, own), place))
        return grads

    def _or_zeros(self, absent: Any, place: Any, ld: Any) -> _Rows:
        """The rows at an address, or zeros."""
        source, distance = (
            either(absent, self._zeros, place),
            either(absent, integer(0), ld),
        )
        return self._lanes.memory(source), distance

    def emit(self) -> None:
        """The loops."""
        a, lanes, cell, layout = self._a, self._lanes, self._cell, self._layout
        values, grads, wide = self._values(), self._gradients(), a.dz_columns
        dz = lanes.memory(lanes.after(a.dz, (self._d * a.N + self._row) * wide))
        ld_dz = T.bind(wide * self._stride)
        grad_out = self._or_zeros(self._grad_out == 0, self._grad_out, self._ld_grad_out)
        # The gradient of a projected output is P wide, and `grad_out` comes from it.
        incoming = [self._or_zeros(a.P != a.H, grads[0], self._ld_state)]
        incoming += [(lanes.memory(grad), self._ld_state) for grad in grads[1:]]
        every = []
        for k in range(1, len(cell.states)):
            given = of_state(self._block, BackwardArguments, k, 4)
            every.append(
                self._or_zeros(given == 0, lanes.after(given, self._record), self._ld_record)
            )
        outgoing = [lanes.memory(grad) for grad in grads]
        grads_x = [
            lanes.memory(_row_input_at(lanes, cell, a, a.grad_x, self._d, self._row, number))
            for number in range(len(cell.row_inputs))
        ]
        ld_x = T.bind(columns_of_x(a, cell) * self._stride) if grads_x else None
        count = len(cell.accumulators) + len(cell.states)

        def one(r: Any, v: Any, masked: Masked) -> None:
            at = T.bind(v * lanes.count)

            def read(rows: _Rows) -> Any:
                return masked.load(rows[0], r * rows[1] + at)

            inputs: Mapping[str, Any] = {name: read(rows) for name, rows in values.items()}
            inputs = {**inputs, "grad_out": read(grad_out)}
            for k, name in enumerate(cell.states):
                value = read(incoming[k])
                if k > 0:
                    value = T.bind(value + read(every[k - 1]))
                inputs[f"grad_new_{name}"] = value
            found = lower(cell.backward, vectors(lanes), inputs)
            last = count + len(cell.parameters)
            summed = (*found[: len(cell.accumulators)], *found[count:last])
            blocks = (*layout.blocks, *layout.parameter_blocks)
            for block, value in zip(blocks, summed, strict=True):
                if block is not None:
                    kept = lanes.zeros() if value is None else value
                    masked.store(dz, r * ld_dz + a.H * block + at, kept)
            states = found[len(cell.accumulators) : count]
            for k, (value, grad) in enumerate(zip(states, outgoing, strict=True)):
                if k > 0 or layout.passes_state:
                    kept = lanes.zeros() if value is None else value
                    masked.store(grad, r * self._ld_state + at, kept)
            if grads_x:
                with when(a.grad_x != 0):
                    for value, grad in zip(found[last:], grads_x, strict=True):
                        kept = lanes.zeros() if value is None else value
                        masked.store(grad, r * ld_x + at, kept)

        each_vector(lanes, self._rows, (self._first, self._last), a.H, one)

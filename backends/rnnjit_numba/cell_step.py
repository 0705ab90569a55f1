"""The pointwise part of a cell's step, on some rows and hidden units.

It reads the address of a `ForwardArguments`, and so the memory of all states and of all that is
saved for the backward pass. Addresses and distances are in bytes.
"""

from __future__ import annotations

from typing import Any

from rnnjit.codegen.cell_layout import CellLayout
from rnnjit.codegen.pointwise import lower
from rnnjit.ir import CellSpec
from rnnjit_numba.arguments import ForwardArguments
from rnnjit_numba.hidden_units import UnitRows, Units
from rnnjit_numba.pointwise import vectors
from rnnjit_numba.simd import I64, define, emitting
from rnnjit_numba.storage import Storage

_ARGUMENTS = 17


def step(storage: Storage, cell: CellSpec) -> Any:
    """Intrinsic: the step of some rows and hidden units, from their pre-activations.

    `step(arguments, d, row, b, stride, rows, first, last, zx, ld_zx, zh, ld_zh, h, ld_h, fresh,
    out, ld_out)` where

    * `arguments` is the address of a `ForwardArguments`, and `d` the direction;
    * `row` and `b` number the first of `rows` rows, among all rows and within the batch; the next
      one is `stride` further on in both;
    * `first` and `last` bound the vectors of hidden units;
    * `zx` and `zh` are the pre-activations `[rows, V, G, lanes]`, rows `ld_zx` and `ld_zh` apart.
      Where the cell only uses sums, `zx` holds these, and `zh` is not read;
    * `h` is the first state before the step, rows `ld_h` apart. The others are what the block says:
      the initial ones if `fresh` is 1, else those that the step before wrote;
    * `out` gets the outputs, rows `ld_out` apart.

    It writes the new states, and what is recorded of every step if the block has memory for that.
    `h`, `out`, and what is saved lie in memory as `storage` says, all other numbers as they are
    computed with.
    """
    name = f"rnnjit_step_{cell.digest[:12]}_{storage.suffix}"

    def body(builder: Any, *args: Any) -> None:
        _Step(storage, cell, builder, args).emit()

    def emit(builder: Any, *args: Any) -> None:
        builder.call(define(builder.module, name, _ARGUMENTS, body), args)

    return emitting(_ARGUMENTS, emit)


class _Step(UnitRows):
    """Code of `step`."""

    def __init__(self, storage: Storage, cell: CellSpec, builder: Any, args: Any) -> None:
        super().__init__(storage, cell, builder, ForwardArguments, args[0])
        self.layout = CellLayout(cell)
        (_, self.d, self.row, self.b, self.stride, self.rows, self.first, self.last, *rest) = args
        self.zx, self.ld_zx, self.zh, self.ld_zh, self.h, self.ld_h, self.fresh, *out = rest
        self.out, self.ld_out = out

    def emit(self) -> None:
        """The loops, once with what the cell saves and once without."""
        if not self.cell.saved:
            self._loops(keep=False)
            return
        saves = self.present(self.argument("values"))
        with self.builder.if_else(saves) as (then, otherwise):
            with then:
                self._loops(keep=True)
            with otherwise:
                self._loops(keep=False)

    def _loops(self, *, keep: bool) -> None:
        cell, D, H, stride = self.cell, self.D, self.H, self.stride
        place = self.bytes_of(self.add(self.builder.mul(self.d, self.B), self.b), H)
        record = self.add(self.builder.mul(self.row, D), self.d)
        states, ld_state = [], self.bytes_of(H, stride)
        fresh = self.present(self.fresh)
        for k in range(1, len(cell.states)):
            first, last = self.state_argument(k, 0), self.state_argument(k, 1)
            before = self.add(self.builder.select(fresh, first, last), place)
            every = self.state_argument(k, 2)
            recorded = self.present(every)
            every = self.add(every, self.bytes_of(record, H))
            states.append((before, self.add(last, place), every, recorded))
        ld_record, ld_value = self.bytes_of(D, H, stride), self.stored_bytes(H)
        count = I64(len(cell.saved))
        values = self.add(self.argument("values"), self.stored_bytes(record, H, count))
        ld_values = self.stored_bytes(D, H, stride, count)
        others = self._others()
        add, mul, computed, storage = self.add, self.builder.mul, self.computed, self.storage

        def body(units: Units) -> None:
            r, at, stored_at = units.r, units.offset(computed), units.offset(storage)
            inputs = self._pre_activations(units)
            if cell.states[0] in cell.step.used:
                inputs[cell.states[0]] = units.load(
                    storage, add(self.h, mul(r, self.ld_h), stored_at)
                )
            here = add(mul(r, ld_state), at)
            for name, (before, *_) in zip(cell.states[1:], states, strict=True):
                inputs[name] = units.load(computed, add(before, here))
            for name, (address, distance) in others.items():
                inputs[name] = units.load(storage, add(address, mul(r, distance), stored_at))
            program = cell.step_saving if keep else cell.step
            joined = computed.lanes.joined(units.vectors)
            out, _, *found = lower(program, vectors(joined, self.builder), inputs)
            units.store(storage, out, add(self.out, mul(r, self.ld_out), stored_at))
            for value, (_, after, every, recorded) in zip(found, states, strict=False):
                units.store(computed, value, add(after, here))
                units.store_if(recorded, computed, value, add(every, mul(r, ld_record), at))
            for k, value in enumerate(found[len(states) :]):
                to = add(values, mul(r, ld_values), mul(ld_value, I64(k)), stored_at)
                units.store(storage, value, to)

        self.each(self.rows, self.first, self.last, H, body)

    def _others(self) -> dict[str, tuple[Any, Any]]:
        """The address of each parameter and row input that is used, and its bytes between rows."""
        cell, used = self.cell, self.cell.step.used
        found = {name: (at, self.zero) for name, at in self.parameters(self.d, used).items()}
        if cell.row_inputs:
            offsets, distance = self.row_input_columns(self.d, self.row)
            x, distance = self.argument("x"), self.builder.mul(distance, self.stride)
            for name, offset in zip(cell.row_inputs, offsets, strict=True):
                if name in used:
                    found[name] = self.add(x, offset), distance
        return found

    def _pre_activations(self, units: Units) -> dict[str, Any]:
        """The accumulators of hidden units."""
        found = {}
        for accumulator in self.cell.accumulators:
            parts = []
            if not self.layout.apart or accumulator.part != "hidden":
                parts.append(self._gate(units, accumulator.gate, self.zx, self.ld_zx))
            if self.layout.apart and accumulator.part != "input":
                parts.append(self._gate(units, accumulator.gate, self.zh, self.ld_zh))
            found[accumulator.name] = parts[0] if len(parts) == 1 else self.builder.fadd(*parts)
        return found

    def _gate(self, units: Units, gate: int, z: Any, ld_z: Any) -> Any:
        """The pre-activations of one gate of hidden units."""
        builder, lanes = self.builder, self.lanes
        row, found = self.add(z, builder.mul(units.r, ld_z)), None
        for i in range(units.vectors):
            v = builder.add(units.v, I64(i))
            column = builder.add(builder.mul(v, I64(self.layout.gates)), I64(gate))
            at = self.add(row, builder.mul(column, I64(lanes.vector_bytes)))
            value = lanes.load(builder, at)
            found = value if found is None else lanes.join(builder, found, value)
        return found

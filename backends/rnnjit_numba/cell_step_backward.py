"""The gradient of the pointwise part of a cell's step, on some rows and hidden units.

It reads the address of a `BackwardArguments`, and so the memory of all states and of all that was
saved for the backward pass. Addresses and distances are in bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from rnnjit.codegen.cell_layout import CellLayout
from rnnjit.codegen.pointwise import lower
from rnnjit.ir import CellSpec
from rnnjit_numba.arguments import BackwardArguments
from rnnjit_numba.hidden_units import UnitRows, Units
from rnnjit_numba.pointwise import vectors
from rnnjit_numba.simd import I64, define, emitting
from rnnjit_numba.storage import Storage

_ARGUMENTS = 13


def step_backward(storage: Storage, cell: CellSpec, *, rows: Storage) -> Any:
    """Intrinsic: dz and the gradients of the states before, of some rows and hidden units.

    `step_backward(arguments, d, row, b, stride, rows, first, last, columns, before, fresh,
    grad_out, ld_grad_out)` where

    * `arguments` is the address of a `BackwardArguments`; `d` ... `last` are as in
      `cell_step.step`, and `columns` is the number of hidden units;
    * `before` numbers the row of the step before that precedes row `row`; the states before are
      the initial ones if `fresh` is 1;
    * `grad_out` has the gradients of the outputs, rows `ld_grad_out` apart, or is 0 for zeros; they
      lie in memory as `rows` says.

    The gradients of row inputs go to grad_x, those of parameters to blocks of dz. The gradients of
    the states are read and written in place. That of the first state is added to `grad_out`, unless
    the output is projected. It is left alone if nothing but W_hh reads the state before.
    """
    name = f"rnnjit_step_backward_{cell.digest[:12]}_{storage.suffix}_{rows.suffix}"

    def body(builder: Any, *args: Any) -> None:
        _StepBackward(storage, cell, rows, builder, args).emit()

    def emit(builder: Any, *args: Any) -> None:
        builder.call(define(builder.module, name, _ARGUMENTS, body), args)

    return emitting(_ARGUMENTS, emit)


class _Rowed(NamedTuple):
    """Where the rows of a tensor or of other numbers lie.

    Attributes:
        address: of the first row.
        distance: bytes between rows.
        storage: how its numbers lie in memory.
    """

    address: Any
    distance: Any
    storage: Storage


class _StepBackward(UnitRows):
    """Code of `step_backward`."""

    def __init__(
        self, storage: Storage, cell: CellSpec, rows: Storage, builder: Any, args: Any
    ) -> None:
        super().__init__(storage, cell, builder, BackwardArguments, args[0])
        self.layout, self.of_grad_out = CellLayout(cell), rows
        (_, self.d, self.row, self.b, self.stride, self.rows, self.first, self.last, *rest) = args
        self.columns, self.before, self.fresh, self.grad_out, self.ld_grad_out = rest

    def emit(self) -> None:
        """The loops."""
        cell, builder, D, H, P = self.cell, self.builder, self.D, self.H, self.argument("P")
        projected = builder.icmp_signed("!=", H, P)
        record = self.add(builder.mul(self.row, D), self.d)
        earlier = self.add(builder.mul(self.before, D), self.d)
        place = self.add(builder.mul(self.d, self.B), self.b)
        storage, computed, product = self.storage, self.computed, self._product
        fresh, used = self.present(self.fresh), cell.backward.used
        addresses: dict[str, _Rowed] = {}

        def previous(name: str, first: Any, every: Any, of: Storage) -> None:
            at = builder.select(
                fresh,
                self.add(first, product(of, (place, H))),
                self.add(every, product(of, (earlier, H))),
            )
            ld_state, ld_record = product(of, (H, self.stride)), product(of, (D, H, self.stride))
            if name in used:
                addresses[name] = _Rowed(at, builder.select(fresh, ld_state, ld_record), of)

        out = builder.select(projected, self.argument("outputs"), self.argument("y"))
        out = self.add(out, self.stored_bytes(record, H))
        addresses["out"] = _Rowed(out, self.stored_bytes(D, H, self.stride), storage)
        previous(cell.states[0], self.argument("h0"), self.argument("y"), storage)
        for k, name in enumerate(cell.states[1:], 1):
            previous(name, self.state_argument(k, 0), self.state_argument(k, 1), computed)
            every = self.add(self.state_argument(k, 1), self.bytes_of(record, H))
            distance = self.bytes_of(D, H, self.stride)
            addresses[f"new_{name}"] = _Rowed(every, distance, computed)
        count = I64(len(cell.saved))
        values = self.add(self.argument("values"), self.stored_bytes(record, H, count))
        for k in range(len(cell.saved)):
            at = self.add(values, self.stored_bytes(H, I64(k)))
            distance = self.stored_bytes(D, H, self.stride, count)
            addresses[f"saved_{k}"] = _Rowed(at, distance, storage)
        for name, at in self.parameters(self.d, used).items():
            addresses[name] = _Rowed(at, self.zero, storage)
        if cell.row_inputs:
            offsets, distance = self.row_input_columns(self.d, self.row)
            x, distance = self.argument("x"), builder.mul(distance, self.stride)
            for name, offset in zip(cell.row_inputs, offsets, strict=True):
                addresses[name] = _Rowed(self.add(x, offset), distance, storage)
        addresses = {name: found for name, found in addresses.items() if name in used}
        self._loops(addresses, self._gradients(place), projected)

    def _gradients(self, place: Any) -> list[Any]:
        """The addresses of the gradients of the states, which run through the steps."""
        builder, scratch = self.builder, self.argument("scratch")
        size = self.bytes_of(self.D, self.B, self.H)
        grads = []
        for k in range(len(self.cell.states)):
            if k == 0:
                given, features = self.argument("grad_h0"), self.argument("P")
                own = self.add(scratch, self.argument("grad_h"))
            else:
                given, features = self.state_argument(k, 3), self.H
                offset = builder.mul(size, I64(k - 1))
                own = self.add(scratch, self.argument("grad_states"), offset)
            base = builder.select(self.present(given), given, own)
            grads.append(self.add(base, self.bytes_of(place, features)))
        return grads

    def _loops(self, addresses: dict[str, _Rowed], grads: list[Any], projected: Any) -> None:
        cell, builder, lanes = self.cell, self.builder, self.lanes
        add, mul, storage, whole = builder.add, builder.mul, self.storage, builder.not_(projected)
        H, ld_state = self.H, self.bytes_of(self.H, self.stride)
        wide = self.argument("dz_columns")
        row = add(mul(self.d, self.argument("N")), self.row)
        dz, ld_dz = (
            add(self.argument("dz"), self.stored_bytes(row, wide)),
            self.stored_bytes(wide, self.stride),
        )
        given, ld_record = self.present(self.grad_out), self.stored_bytes(self.D, H, self.stride)
        record = self.stored_bytes(add(mul(self.row, self.D), self.d), H)
        recorded = [
            (add(every, record), self.present(every))
            for every in (self.state_argument(k, 4) for k in range(1, len(cell.states)))
        ]

        columns: list[Any] = []
        ld_x = grad_x = wants_x = None
        if cell.row_inputs:
            columns, distance = self.row_input_columns(self.d, self.row)
            ld_x, grad_x = mul(distance, self.stride), self.argument("grad_x")
            wants_x = self.present(grad_x)

        def body(units: Units) -> None:
            r, at, stored_at = units.r, units.offset(self.computed), units.offset(storage)
            inputs = {
                name: units.load(of, self.add(address, mul(r, ld), units.offset(of)))
                for name, (address, ld, of) in addresses.items()
            }
            here = add(mul(r, ld_state), at)
            valid = add(grads[0], here)
            of = self.of_grad_out
            grad_out = self.add(self.grad_out, mul(r, self.ld_grad_out), units.offset(of))
            inputs["grad_out"] = units.load_if(given, of, grad_out, valid)
            for k, (name, grad) in enumerate(zip(cell.states, grads, strict=True)):
                place = add(grad, here)
                if k == 0:
                    value = units.load_if(whole, self.computed, place, place)
                else:
                    value = units.load(self.computed, place)
                    every, given_too = recorded[k - 1]
                    of_step = self.add(every, mul(r, ld_record), stored_at)
                    more = units.load_if(given_too, storage, of_step, valid)
                    value = builder.fadd(value, more)
                inputs[f"grad_new_{name}"] = value
            joined = lanes.joined(units.vectors)
            zero = joined.constant(0.0)
            found = lower(cell.backward, vectors(joined, builder), inputs)
            of_dz, of_states, of_inputs = self._sorted(
                [zero if value is None else value for value in found]
            )
            for block, value in of_dz:
                to = self.add(dz, mul(r, ld_dz), self.stored_bytes(H, I64(block)), stored_at)
                units.store(storage, value, to)
            for k, (value, grad) in enumerate(zip(of_states, grads, strict=True)):
                if k > 0 or self.layout.passes_state:
                    units.store(self.computed, value, add(grad, here))
            for value, offset in zip(of_inputs, columns, strict=True):
                to = self.add(grad_x, offset, mul(r, ld_x), stored_at)
                units.store_if(wants_x, storage, value, to)

        self.each(self.rows, self.first, self.last, self.columns, body)

    def _sorted(self, found: Sequence[Any]) -> tuple[list[tuple[int, Any]], list[Any], list[Any]]:
        """Gradients by where they go: (block, value) of dz, those of states and of row inputs."""
        cell, rest = self.cell, list(found)
        accumulators, states = len(cell.accumulators), len(cell.states)
        of_dz = list(zip(self.layout.blocks, rest[:accumulators], strict=True))
        of_states, rest = rest[accumulators:][:states], rest[accumulators + states :]
        blocks = self.layout.parameter_blocks
        of_dz += [
            (block, value)
            for block, value in zip(blocks, rest[: len(blocks)], strict=True)
            if block is not None
        ]
        return of_dz, of_states, rest[len(blocks) :]

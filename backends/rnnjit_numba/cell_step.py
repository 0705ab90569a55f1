"""The pointwise part of a cell's step and of its gradient, on some rows and hidden units.

The functions here read the address of a kernel's argument block, and so the memory of all states
and of all that is saved for the backward pass. Addresses and distances are in bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from llvmlite import ir

from rnnjit.codegen.cell_layout import CellLayout
from rnnjit.codegen.pointwise import lower
from rnnjit.ir import CellSpec
from rnnjit_numba.arguments import (
    BackwardArguments,
    ForwardArguments,
    parameter_argument,
    state_argument,
)
from rnnjit_numba.pointwise import vectors
from rnnjit_numba.simd import I64, define, emitting, load, loop
from rnnjit_numba.storage import Storage

_STEP_ARGUMENTS, _BACKWARD_ARGUMENTS = 17, 13


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
        builder.call(define(builder.module, name, _STEP_ARGUMENTS, body), args)

    return emitting(_STEP_ARGUMENTS, emit)


def step_backward(storage: Storage, cell: CellSpec, *, rows: Storage) -> Any:
    """Intrinsic: dz and the gradients of the states before, of some rows and hidden units.

    `step_backward(arguments, d, row, b, stride, rows, first, last, columns, before, fresh,
    grad_out, ld_grad_out)` where

    * `arguments` is the address of a `BackwardArguments`; `d` ... `last` are as in `step`, and
      `columns` is the number of hidden units;
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
        builder.call(define(builder.module, name, _BACKWARD_ARGUMENTS, body), args)

    return emitting(_BACKWARD_ARGUMENTS, emit)


class _Rows:
    """What both functions need: the arguments, addresses of rows, and loops.

    Args:
        storage: how the numbers of tensors lie in memory.
        cell: the cell.
        builder: of the function.
        kind: the arguments at the address that is the function's first argument.
        address: that address.
    """

    def __init__(
        self, storage: Storage, cell: CellSpec, builder: Any, kind: Any, address: Any
    ) -> None:
        self.storage, self.lanes, self.cell, self.builder = storage, storage.lanes, cell, builder
        self.computed = Storage(storage.lanes)
        self._kind, self._address = kind, address
        self.zero = I64(0)
        self.H, self.D, self.B = self.argument("H"), self.argument("D"), self.argument("B")

    def argument(self, name: str) -> Any:
        """An argument of the kernel."""
        return self._word(self._kind._fields.index(name))

    def state_argument(self, state: int, which: int) -> Any:
        """An address of one of the states but the first."""
        return self._word(state_argument(self._kind, state, which))

    def parameters(self, d: Any, used: frozenset[str]) -> dict[str, Any]:
        """The address of each of the cell's parameters that is among those used."""
        found, names = {}, self.cell.parameters
        direction = self.builder.mul(d, I64(8 * len(names)))
        for k, name in enumerate(names):
            if name in used:
                index = parameter_argument(self._kind, self.cell, k, 0)
                found[name] = self._at(self.add(self._address, I64(8 * index), direction))
        return found

    def row_input_columns(self, d: Any, row: Any) -> tuple[list[Any], Any]:
        """Of each row input of a row, the distance from the address of x, and that between rows."""
        inputs, count = self.argument("I"), I64(len(self.cell.row_inputs))
        features = self.add(inputs, self.builder.mul(count, self.builder.mul(self.D, self.H)))
        first = self.builder.mul(d, count)
        offsets = [
            self.add(
                self.stored_bytes(row, features),
                self.stored_bytes(inputs),
                self.stored_bytes(self.add(first, I64(k)), self.H),
            )
            for k in range(len(self.cell.row_inputs))
        ]
        return offsets, self.stored_bytes(features)

    def _word(self, index: int) -> Any:
        return self._at(self.builder.add(self._address, I64(8 * index)))

    def _at(self, address: Any) -> Any:
        return load(self.builder, address, I64, 8)

    def bytes_of(self, *factors: Any) -> Any:
        """The bytes of a product of numbers of elements that are computed with."""
        return self._product(self.computed, factors)

    def stored_bytes(self, *factors: Any) -> Any:
        """The same of elements of tensors."""
        return self._product(self.storage, factors)

    def _product(self, storage: Storage, factors: Sequence[Any]) -> Any:
        product = I64(storage.itemsize)
        for factor in factors:
            product = self.builder.mul(product, factor)
        return product

    def offset(self, storage: Storage, v: Any) -> Any:
        """The distance of vector `v` in a row."""
        return self.builder.mul(v, I64(storage.vector_bytes))

    def add(self, *terms: Any) -> Any:
        """A sum of integers."""
        total, *others = terms
        for term in others:
            total = self.builder.add(total, term)
        return total

    def present(self, address: Any) -> Any:
        """Whether an address is not 0."""
        return self.builder.icmp_signed("!=", address, self.zero)

    def each(
        self, rows: Any, first: Any, last: Any, columns: Any, body: Callable[[_Units], None]
    ) -> None:
        """Emit `body` for the units of each row: for full vectors by twos, then for the others.

        The program of a cell is a long chain of operations, and two of them side by side keep the
        processor busy. Full vectors need no masks, which take long on some processors.
        """
        builder, lanes = self.builder, self.lanes
        whole = builder.sdiv(columns, I64(lanes.count))
        whole = builder.select(builder.icmp_signed("<", whole, last), whole, last)
        pairs = builder.ashr(builder.sub(whole, first), I64(1))
        single = builder.add(first, builder.shl(pairs, I64(1)))

        def one_row(r: Any, block: Any) -> Any:
            def two_vectors(i: Any, inner: Any) -> Any:
                v = builder.add(first, builder.shl(i, I64(1)))
                body(_Units(builder, r, v, 2, None))
                return inner

            def one_vector(i: Any, inner: Any) -> Any:
                v = builder.add(single, i)
                count = builder.sub(columns, builder.mul(v, I64(lanes.count)))
                body(_Units(builder, r, v, 1, lanes.mask(builder, count)))
                return inner

            loop(builder, pairs, [], two_vectors)
            loop(builder, builder.sub(last, single), [], one_vector)
            return block

        loop(builder, rows, [], one_row)


class _Units(NamedTuple):
    """Adjacent hidden units of a row, on which a program runs at a time.

    Attributes:
        builder: emits the code.
        r: number of the row.
        v: number of their first vector.
        vectors: how many vectors of them there are.
        mask: the lanes of them that exist, or None for all.
    """

    builder: Any
    r: Any
    v: Any
    vectors: int
    mask: Any

    def offset(self, storage: Storage) -> Any:
        """Their distance from the first unit of the row."""
        return self.builder.mul(self.v, I64(storage.vector_bytes))

    def load(self, storage: Storage, address: Any) -> Any:
        """The numbers at an address, zeros for units that do not exist."""
        return storage.joined(self.vectors).masked_load(self.builder, address, self.mask)

    def store(self, storage: Storage, value: Any, address: Any) -> None:
        """Write numbers to an address."""
        storage.joined(self.vectors).masked_store(self.builder, value, address, self.mask)

    def load_if(self, present: Any, storage: Storage, address: Any, valid: Any) -> Any:
        """As `load` if `present` is true, else zeros; `valid` is any address of memory.

        A processor takes long over an invalid address, even if no lane is read.
        """
        address = self.builder.select(present, address, valid)
        storage = storage.joined(self.vectors)
        lanes = ir.VectorType(ir.IntType(1), storage.lanes.count)
        held = ir.Constant(lanes, [1] * lanes.count) if self.mask is None else self.mask
        held = self.builder.select(present, held, ir.Constant(lanes, None))
        return storage.masked_load(self.builder, address, held)

    def store_if(self, present: Any, storage: Storage, value: Any, address: Any) -> None:
        """As `store` if `present` is true."""
        with self.builder.if_then(present):
            self.store(storage, value, address)


class _Step(_Rows):
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

        def body(units: _Units) -> None:
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

    def _pre_activations(self, units: _Units) -> dict[str, Any]:
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

    def _gate(self, units: _Units, gate: int, z: Any, ld_z: Any) -> Any:
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


class _StepBackward(_Rows):
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

        def body(units: _Units) -> None:
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

"""The rows and hidden units on which the pointwise part of a cell runs, as code by llvmlite.

The functions that are made of it read the address of a kernel's argument block. Addresses and
distances are in bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from llvmlite import ir

from rnnjit.ir import CellSpec
from rnnjit_numba.arguments import parameter_argument, state_argument
from rnnjit_numba.simd import I64, load, loop
from rnnjit_numba.storage import Storage


class UnitRows:
    """What a step and its gradient need: the arguments, addresses of rows, and loops.

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
        self, rows: Any, first: Any, last: Any, columns: Any, body: Callable[[Units], None]
    ) -> None:
        """Emit `body` for the units of each row: for full vectors by twos, then for the others.

        The program of a cell is a long chain of operations, and two of them side by side keep the
        processor busy. Full vectors need no masks, which take long on some processors.
        """
        builder, lanes = self.builder, self.lanes
        whole = builder.sdiv(columns, I64(lanes.count))
        whole = builder.select(builder.icmp_signed("<", whole, last), whole, last)
        pairs = builder.ashr(builder.sub(whole, first), I64(1))
        # A range may be empty behind the last full vector.
        pairs = builder.select(builder.icmp_signed(">", pairs, I64(0)), pairs, I64(0))
        single = builder.add(first, builder.shl(pairs, I64(1)))

        def one_row(r: Any, block: Any) -> Any:
            def two_vectors(i: Any, inner: Any) -> Any:
                v = builder.add(first, builder.shl(i, I64(1)))
                body(Units(builder, r, v, 2, None))
                return inner

            def one_vector(i: Any, inner: Any) -> Any:
                v = builder.add(single, i)
                count = builder.sub(columns, builder.mul(v, I64(lanes.count)))
                body(Units(builder, r, v, 1, lanes.mask(builder, count)))
                return inner

            loop(builder, pairs, [], two_vectors)
            loop(builder, builder.sub(last, single), [], one_vector)
            return block

        loop(builder, rows, [], one_row)


class Units(NamedTuple):
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

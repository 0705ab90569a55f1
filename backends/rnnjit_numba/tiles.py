"""Register tiles: the matrix part of every kernel.

A tile keeps `rows x vectors` accumulators in vector registers while it runs over k, so that
nothing but its operands is read from memory (the scheme of GotoBLAS micro-kernels: Goto and van de
Geijn, "Anatomy of High-Performance Matrix Multiplication", ACM TOMS 34(3), 2008). LLVM does not
keep such a block in registers from scalar loops, hence the vector IR here.

Each output element is summed in one order, whatever the tile's shape: chains of `FOLD`
multiply-adds in the order of k, each chain added to the total before it. How rows and columns are
cut into tiles, or divided between threads, changes no bit of a result. The chains keep the
rounding error of n terms near that of sqrt(n * FOLD) rather than n (Higham, "The accuracy of
floating point summation", SIAM J. Sci. Comput. 14(4), 1993), as in a BLAS that cuts k into blocks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

from rnnjit_numba.simd import (
    I64,
    Lanes,
    define_tile,
    either,
    emitting,
    loop,
    prefetch,
    whole_or_masked,
)
from rnnjit_numba.storage import BFloat16, Storage
from rnnjit_numba.tile_shapes import TileShape

#: Multiply-adds in a chain before it is added to the total.
FOLD = 64

AFFINE_ARGUMENTS = 14
OUTER_ARGUMENTS = 8


@dataclass(frozen=True)
class TileSet:
    """The tiles for one element type and one vector unit.

    Attributes:
        storage: how the operands lie in memory; what is added up lies there as it is computed with.
        shapes: of the tiles that blocks of products are cut into.
        outer_shapes: of the tiles that sums of outer products are cut into.
    """

    storage: Storage
    shapes: tuple[TileShape, ...]
    outer_shapes: tuple[TileShape, ...]

    def affine(self) -> Any:
        """Intrinsic: a block of `out = init + x @ w1 + h @ w2`.

        `tile(shape, init, ld_init, x, ld_x, k1, w1, h, ld_h, k2, w2, ld_w, out, ld_out_tail)` where

        * `shape` is 16 * rows + vectors: the rows of one of the set's shapes, and its vectors or 1,
          2 or 4 that are fewer;
        * `init` is the block that accumulation starts from, `ld_init` apart from row to row (0: all
          rows start from the same vectors, the bias);
        * `x` is `[rows, k1]`, `h` is `[rows, k2]`, rows `ld_x` and `ld_h` apart;
        * `w1`, `w2` are packed: column vector v has rows k to k + terms - 1, of a k that is a
          multiple of `Storage.terms`, at `w + v * ld_w + k / terms * vector_bytes`, zeros behind
          the last row;
        * `out` is the block written; its rows are `ld_out_tail >> 8` apart and the last vector has
          `ld_out_tail & 255` lanes.

        Addresses and distances are in bytes.
        """
        name = f"rnnjit_affine_tile_{self.storage.suffix}"

        def emit(builder: Any, *args: Any) -> None:
            function = define_tile(builder.module, name, AFFINE_ARGUMENTS, self._affine_switch)
            builder.call(function, args)

        return emitting(AFFINE_ARGUMENTS, emit)

    def outer(self) -> Any:
        """Intrinsic: a block of a sum of outer products, `out[m, n] += sum_k a[k, m] b[k, n]`.

        `tile(shape, a, b, k, out, ld_out, valid, keep)` where `shape` is 16 * rows + vectors: those
        of one of the set's shapes, or fewer vectors; `a` is packed `[k][rows][terms]`, `b` is
        packed `[k][vectors * lanes][terms]`, where `k` counts groups of `Storage.terms` terms, and
        the rows of `out` are `ld_out` bytes apart. `valid` is 256 * the rows of `out` that exist +
        the lanes of its last vector; with `keep` 0 the sum replaces what `out` holds.
        """
        name = f"rnnjit_outer_tile_{self.storage.suffix}"

        def emit(builder: Any, *args: Any) -> None:
            function = define_tile(builder.module, name, OUTER_ARGUMENTS, self._outer_switch)
            builder.call(function, args)

        return emitting(OUTER_ARGUMENTS, emit)

    def _affine_switch(self, builder: Any, shape: Any, *args: Any) -> None:
        cases = {
            16 * rows + width: (rows, width)
            for rows, widest in self.shapes
            for width in (1, 2, 4, widest)
            if width <= widest
        }
        switch(
            builder,
            shape,
            cases,
            lambda inner, case: _AffineTile(self.storage, *case).emit(inner, *args),
        )

    def _outer_switch(self, builder: Any, shape: Any, *args: Any) -> None:
        cases = {
            16 * rows + width: (rows, width)
            for rows, widest in self.outer_shapes
            for width in range(1, widest + 1)
        }
        storage = self.storage

        def emit(inner: Any, case: tuple[int, int]) -> None:
            _outer(storage, case[0], case[1], inner, *args)

        switch(builder, shape, cases, emit)


def switch(builder: Any, selector: Any, cases: dict[int, Any], emit: Any) -> None:
    """Branch to the code of one case; the function ends after it."""
    start = builder.block
    unreachable = builder.append_basic_block("unreachable")
    builder.position_at_end(unreachable)
    builder.unreachable()
    builder.position_at_end(start)
    branches = builder.switch(selector, unreachable)
    for value, case in cases.items():
        block = builder.append_basic_block(f"case{value}")
        branches.add_case(I64(value), block)
        builder.position_at_end(block)
        emit(builder, case)
        builder.ret_void()


class _AffineTile:
    """Code of one shape of the affine tile."""

    def __init__(self, storage: Storage, rows: int, vectors: int) -> None:
        self.storage, self.lanes, self.rows, self.vectors = storage, storage.lanes, rows, vectors

    def emit(
        self,
        builder: Any,
        init: Any,
        ld_init: Any,
        x: Any,
        ld_x: Any,
        k1: Any,
        w1: Any,
        h: Any,
        ld_h: Any,
        k2: Any,
        w2: Any,
        ld_w: Any,
        out: Any,
        ld_out_tail: Any,
    ) -> None:
        """Load the start values, run over x, then over h, and write the block."""
        ld_out, tail = builder.ashr(ld_out_tail, I64(8)), builder.and_(ld_out_tail, I64(255))
        mask = self.lanes.mask(builder, tail)
        block = [
            [self._load(builder, row, v, mask) for v in range(self.vectors)]
            for row in steps(builder, init, ld_init, self.rows)
        ]
        parts = (x, ld_x, k1, w1), (h, ld_h, k2, w2)

        def accumulate(inner: Any, part: Any) -> Any:
            a, ld_a, k, w = part
            return self._accumulate(builder, inner, a, ld_a, k, w, ld_w)

        block = in_two_parts(builder, parts, block, accumulate)
        places = steps(builder, out, ld_out, self.rows)

        def store(whole: bool) -> None:
            for row, values in zip(places, block, strict=True):
                for v, value in enumerate(values):
                    self._store(builder, value, row, v, None if whole else mask)

        whole_or_masked(builder, self.lanes.are_whole(builder, tail), store)

    def _load(self, builder: Any, row: Any, v: int, mask: Any) -> Any:
        address = builder.add(row, I64(v * self.lanes.vector_bytes))
        if v == self.vectors - 1:
            return self.lanes.masked_load(builder, address, mask)
        return self.lanes.load(builder, address)

    def _store(self, builder: Any, value: Any, row: Any, v: int, mask: Any) -> None:
        address = builder.add(row, I64(v * self.lanes.vector_bytes))
        if v == self.vectors - 1:
            self.lanes.masked_store(builder, value, address, mask)
        else:
            self.lanes.store(builder, value, address)

    def _accumulate(
        self, builder: Any, block: Any, a: Any, ld_a: Any, k: Any, w: Any, ld_w: Any
    ) -> Any:
        """Compute block + a @ w, for `a` of k columns in rows `ld_a` apart; k may be 0."""
        rows = steps(builder, a, ld_a, self.rows)
        columns = steps(builder, w, ld_w, self.vectors)
        storage = self.storage

        def step(load_terms: Any, index: Any, block: Any) -> Any:
            offset_a = builder.mul(index, I64(storage.itemsize))
            offset_w = builder.mul(index, I64(storage.packed_bytes))
            b = (storage.load_packed(builder, builder.add(column, offset_w)) for column in columns)
            scalars = (load_terms(builder, builder.add(row, offset_a)) for row in rows)
            return rank_one(storage, builder, block, scalars, b)

        return over_terms(storage, builder, k, block, step)


def over_terms(storage: Storage, builder: Any, k: Any, block: Any, step: Any) -> Any:
    """`block` plus the sums of `step(load_terms, index, sum)` over `k` terms.

    A step has `Storage.terms` terms from `index` on; `load_terms` loads those of a scalar operand.
    """

    def whole(index: Any, sums: Any) -> Any:
        return step(storage.load_terms, index, sums)

    lanes = storage.lanes
    if not isinstance(storage, BFloat16):
        return folded_chains(lanes, builder, k, block, whole, FOLD)

    def last(index: Any, sums: Any) -> Any:
        return step(storage.load_last_term, index, sums)

    return folded_chains(lanes, builder, k, block, whole, FOLD, storage.terms, last)


def _outer(
    storage: Storage,
    rows: int,
    vectors: int,
    builder: Any,
    a: Any,
    b: Any,
    k: Any,
    out: Any,
    ld_out: Any,
    valid: Any,
    keep: Any,
) -> None:
    """Code of one shape of the outer-product tile."""
    lanes = storage.lanes
    size = storage.itemsize * storage.terms
    places = [
        place
        for row in steps(builder, out, ld_out, rows)
        for place in steps(builder, row, I64(lanes.vector_bytes), vectors)
    ]
    existing, tail = builder.ashr(valid, I64(8)), builder.and_(valid, I64(255))
    rows_exist = builder.icmp_signed(">=", existing, I64(rows))
    whole = builder.and_(rows_exist, lanes.are_whole(builder, tail))

    def masked_places(whole: bool) -> Iterator[tuple[Any, Any]]:
        masks = [None] * (rows * vectors)
        if not whole:
            masks = _block_masks(lanes, builder, rows, vectors, existing, tail)
        return zip(places, masks, strict=True)

    def load(whole: bool) -> list[Any]:
        return [lanes.masked_load(builder, *place) for place in masked_places(whole)]

    def earlier_sum() -> list[Any]:
        # The tile below comes next, and no processor foresees steps of a whole row.
        below = builder.add(out, builder.mul(ld_out, I64(rows)))
        for row in steps(builder, below, ld_out, rows):
            for place in steps(builder, row, I64(vectors * lanes.vector_bytes - 1), 2):
                prefetch(builder, place)
        return either(builder, whole, lambda: load(True), lambda: load(False))

    # Without an earlier sum nothing is loaded, lest the tile wait for memory that it overwrites.
    adding, zero = builder.icmp_signed("!=", keep, I64(0)), lanes.constant(0.0)
    flat = either(builder, adding, earlier_sum, lambda: [zero] * len(places))
    block = [flat[r * vectors : (r + 1) * vectors] for r in range(rows)]

    def step(index: Any, block: Any) -> Any:
        at_a = builder.add(a, builder.mul(index, I64(rows * size)))
        at_b = builder.add(b, builder.mul(index, I64(vectors * lanes.vector_bytes)))
        wide = (
            storage.load_packed(builder, builder.add(at_b, I64(v * lanes.vector_bytes)))
            for v in range(vectors)
        )
        scalars = (
            storage.load_terms(builder, builder.add(at_a, I64(r * size))) for r in range(rows)
        )
        return rank_one(storage, builder, block, scalars, wide)

    block = folded_chains(lanes, builder, k, block, step, FOLD // storage.terms)

    def store(whole: bool) -> None:
        values = chain.from_iterable(block)
        for value, place in zip(values, masked_places(whole), strict=True):
            lanes.masked_store(builder, value, *place)

    whole_or_masked(builder, whole, store)


def _block_masks(
    lanes: Lanes, builder: Any, rows: int, vectors: int, existing: Any, tail: Any
) -> list[Any]:
    """The lanes of each vector of a block that exist, row by row (see `TileSet.outer`)."""
    full, last, none = (lanes.mask(builder, count) for count in (I64(lanes.count), tail, I64(0)))
    masks = []
    for r in range(rows):
        inside = builder.icmp_signed(">", existing, I64(r))
        row = [full] * (vectors - 1) + [last]
        masks += [builder.select(inside, mask, none) for mask in row]
    return masks


def in_two_parts(builder: Any, parts: Any, block: Any, accumulate: Any) -> Any:
    """`accumulate(block, part)` for one part after the other, by one copy of its code.

    A part is (rows, their distance, k, ...); the second is left out if its k is 0.
    """

    def step(index: Any, inner: Any) -> Any:
        second = builder.icmp_signed("!=", index, I64(0))
        chosen = [builder.select(second, b, a) for a, b in zip(*parts, strict=True)]
        return accumulate(inner, chosen)

    present = builder.icmp_signed(">", parts[1][2], I64(0))
    return loop(builder, builder.select(present, I64(2), I64(1)), block, step, at_least_once=True)


def rank_one(
    storage: Storage, builder: Any, block: Any, scalars: Iterable[Any], b: Iterable[Any]
) -> Any:
    """Compute block + scalars (outer product) b, for one group of terms.

    The operands are loaded as they are drawn from the iterables: those of which there are fewer at
    once, to stay in registers, and each of the others only before it is used. LLVM keeps this
    order, and would spill accumulators if all were loaded first.
    """
    rows, vectors = len(block), len(block[0])
    result = [[None] * vectors for _ in range(rows)]
    broadcast = (storage.broadcast(builder, scalar) for scalar in scalars)

    def add(r: int, v: int, a: Any, value: Any) -> None:
        result[r][v] = storage.multiply_add(builder, a, value, block[r][v])

    if rows >= vectors:
        wide = list(b)
        for r, a in enumerate(broadcast):
            for v, value in enumerate(wide):
                add(r, v, a, value)
    else:
        tall = list(broadcast)
        for v, value in enumerate(b):
            for r, a in enumerate(tall):
                add(r, v, a, value)
    return result


def steps(builder: Any, base: Any, distance: Any, count: int) -> list[Any]:
    """The addresses base, base + distance, ..."""
    return [builder.add(base, builder.mul(distance, I64(i))) for i in range(count)]


def folded_chains(
    lanes: Lanes,
    builder: Any,
    trips: Any,
    block: Any,
    step: Any,
    fold: int,
    stride: int = 1,
    last: Any = None,
) -> Any:
    """`block` plus the sums of `step(index, sum)` over `index` = 0, stride, ... below `trips`.

    A chain of `fold` indices starts from zero; each chain is added to the total before it. If
    `last` is given, it makes the step that fewer than `stride` indices are left for.
    """
    chains = builder.sdiv(builder.add(trips, I64(fold - 1)), I64(fold))

    def chain(index: Any, total: Any) -> Any:
        start = builder.mul(index, I64(fold))
        rest = builder.sub(trips, start)
        length = builder.select(builder.icmp_signed("<", rest, I64(fold)), rest, I64(fold))
        whole = length if last else builder.add(length, I64(stride - 1))
        rounds = builder.sdiv(whole, I64(stride))
        zeros = [[lanes.constant(0.0) for _ in row] for row in total]

        def inner(i: Any, sums: Any) -> Any:
            return step(builder.add(start, builder.mul(i, I64(stride))), sums)

        found = loop(builder, rounds, zeros, inner, at_least_once=last is None)
        if last is not None:
            done = builder.mul(rounds, I64(stride))
            left = builder.icmp_signed(">", length, done)
            at = builder.add(start, done)
            found = loop(builder, builder.zext(left, I64), found, lambda _, sums: last(at, sums))
        return [
            [builder.fadd(a, b) for a, b in zip(*rows, strict=True)]
            for rows in zip(total, found, strict=True)
        ]

    return loop(builder, chains, block, chain)

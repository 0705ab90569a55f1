"""Preparation of the forward kernel: packs the weights and projects the input.

Weights are packed once per call into column vectors `[K][lanes]`, or `[K / 2][lanes][2]` of pairs
(see `storage`), from which the register tiles stream. One direction has, in this order: for each
vector of hidden units and each gate, a column vector of W_ih and W_hh; the biases, as
`[V][G][lanes]`, those of zx and of zh one after the other if the cell uses them apart, else their
sum, or that of zx alone without a recurrent product; and, where there is a projection, the column
vectors of W_hr and a row of zeros.

The first arguments of each function are the address of a `ForwardArguments`, the direction `d`, and
a range of vectors of the hidden units, from `first` up to but not including `last`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from rnnjit.codegen.plan import ROW_BLOCK
from rnnjit_numba import memory
from rnnjit_numba.arguments import ForwardArguments
from rnnjit_numba.context import NOTHING, CodegenContext, CommonFunctions


class Preparation(NamedTuple):
    """The functions that run before the first step.

    Attributes:
        pack: packs weights.
        pack_bias: writes the biases.
        pack_out: packs W_hr, by vectors of the projected features.
        project: writes the input projection of some rows.
        prepare: all of these for some columns; only the biases if weights are read in place.
        projection_at: the address of a direction's packed W_hr, which zeros follow.
    """

    pack: Any
    pack_bias: Any
    pack_out: Any
    project: Any
    prepare: Any
    projection_at: Any


def add_preparation(context: CodegenContext, common: CommonFunctions) -> Preparation:
    """Add the functions that run before the first step to the symbols."""
    projection_at = add_projection_at(context)
    pack, pack_bias = _add_pack(context), add_pack_bias(context)
    pack_out, project = _add_pack_out(context, projection_at), _add_project(context, common)
    prepare = add_prepare(context, pack, pack_bias, pack_out, project)
    return Preparation(pack, pack_bias, pack_out, project, prepare, projection_at)


def add_prepare(
    context: CodegenContext, pack: Any, pack_bias: Any, pack_out: Any, project: Any
) -> Any:
    """Prepare some columns for the rows `start` to `stop`, whose projections begin at `zx`.

    The weights are packed if `packing` is 1.
    """
    unpack = memory.unpack_arguments(ForwardArguments)
    lanes = context.lanes.count

    def prepare(
        arguments: int,
        d: int,
        first: int,
        last: int,
        packing: int,
        start: int,
        stop: int,
        zx: int,
        place: int,
    ) -> None:
        a = unpack(arguments)
        if packing != 0:
            pack_bias(arguments, d, first, last)
            if a.direct == 0:
                pack(arguments, d, first, last)
            if a.P != a.H:
                pack_out(arguments, d, 0, (a.P + lanes - 1) // lanes)
        if a.direct == 0:
            project(arguments, d, first, last, start, stop, zx, place)

    return context.symbols.add(prepare)


def _add_pack(context: CodegenContext) -> Any:
    """Pack W_ih and W_hh, one after the other in each column vector.

    That of gate g and unit vector u holds rows `g * H + u * lanes` on of W_ih as `[I][lanes]`, then
    those of W_hh as `[P][lanes]`; I and P are padded with zeros to multiples of `lanes` groups of
    terms.
    """
    unpack, minimum = memory.unpack_arguments(ForwardArguments), memory.minimum()
    transpose, gates = memory.transpose(context.storage), context.layout.gates
    has_product = context.product
    lanes, size = context.lanes.count, context.storage.itemsize
    term_bytes, block_terms = context.storage.packed_bytes, lanes * context.storage.terms

    def pack(arguments: int, d: int, first: int, last: int) -> None:
        a = unpack(arguments)
        base = a.scratch + d * a.packed
        w_ih, w_hh = (a.w_ih_0, a.w_hh_0) if d == 0 else (a.w_ih_1, a.w_hh_1)
        for v in range(first * gates, last * gates):
            unit = v // gates * lanes
            row, count = v % gates * a.H + unit, minimum(lanes, a.H - unit)
            for part in range(2):
                w, columns, to = w_ih, a.I, base + v * a.packed_row
                if part == 1:
                    w, columns, to = w_hh, a.P * has_product, to + a.packed_inputs
                for k in range(0, columns, block_terms):
                    source = w + (row * columns + k) * size
                    block = to + k * term_bytes
                    transpose(block, source, columns * size, count, columns - k)

    return context.symbols.add(pack)


def add_pack_bias(context: CodegenContext) -> Any:
    """Write the biases, or zeros, after the packed weights."""
    unpack, minimum = memory.unpack_arguments(ForwardArguments), memory.minimum()
    storage, computed = context.storage, context.computed
    copy, add = memory.copy(storage, computed), memory.add(computed, storage, computed)
    gates, apart = context.layout.gates, int(context.layout.apart)
    has_product = context.product
    lanes, vector_bytes, size = context.lanes.count, context.lanes.vector_bytes, storage.itemsize

    def pack_bias(arguments: int, d: int, first: int, last: int) -> None:
        a = unpack(arguments)
        vectors = (a.H + lanes - 1) // lanes * gates
        bias = a.scratch + d * a.packed + vectors * a.packed_row
        b_ih, b_hh = (a.b_ih_0, a.b_hh_0) if d == 0 else (a.b_ih_1, a.b_hh_1)
        for v in range(first * gates, last * gates):
            unit = v // gates * lanes
            offset, count = (v % gates * a.H + unit) * size, minimum(lanes, a.H - unit)
            to = bias + v * vector_bytes
            if b_ih == 0:
                offset = 0
            copy(to, b_ih + offset, count, lanes)
            if apart != 0:
                copy(to + vectors * vector_bytes, b_hh + offset, count, lanes)
            elif has_product != 0 and b_hh != 0:
                add(to, to, b_hh + offset, count)

    return context.symbols.add(pack_bias)


def _add_pack_out(context: CodegenContext, projection_at: Any) -> Any:
    """Pack W_hr by vectors `first` to `last` of the projected features, as `[H][lanes]`; zeros.

    Where weights are read in place, only the zeros are written.
    """
    unpack, minimum = memory.unpack_arguments(ForwardArguments), memory.minimum()
    transpose, copy = (
        memory.transpose(context.storage),
        memory.copy(context.computed, context.computed),
    )
    lanes, vector_bytes, size = (
        context.lanes.count,
        context.lanes.vector_bytes,
        context.storage.itemsize,
    )
    term_bytes, block_terms = context.storage.packed_bytes, lanes * context.storage.terms

    def pack_out(arguments: int, d: int, first: int, last: int) -> None:
        a = unpack(arguments)
        weights = projection_at(arguments, d)
        zeros = weights + (a.P + lanes - 1) // lanes * a.packed_out
        w_hr = a.w_hr_0 if d == 0 else a.w_hr_1
        for v in range(first, last):
            copy(zeros + v * vector_bytes, 0, 0, lanes)
            for k in range(0, a.H if a.direct == 0 else 0, block_terms):
                source = w_hr + (v * lanes * a.H + k) * size
                to = weights + v * a.packed_out + k * term_bytes
                transpose(to, source, a.H * size, minimum(lanes, a.P - v * lanes), a.H - k)

    return context.symbols.add(pack_out)


def add_projection_at(context: CodegenContext) -> Any:
    """The address of a direction's packed W_hr, which zeros follow."""
    unpack = memory.unpack_arguments(ForwardArguments)
    lanes, vector_bytes = context.lanes.count, context.lanes.vector_bytes
    gates, parts = context.layout.gates, 1 + int(context.layout.apart)

    def projection_at(arguments: int, d: int) -> int:
        a = unpack(arguments)
        vectors = (a.H + lanes - 1) // lanes * gates
        found: int = a.scratch + d * a.packed + vectors * (a.packed_row + parts * vector_bytes)
        return found

    return context.symbols.add(projection_at)


def _add_project(context: CodegenContext, common: CommonFunctions) -> Any:
    """Write the input projection, W_ih x + b, of rows `start` to `stop`.

    b is the bias of zx if the cell uses it apart, else the sum of both. The cell of nn.RNN has it
    in y. For others `zx` is the address of the projection of row 0.
    """
    unpack, affine = memory.unpack_arguments(ForwardArguments), common.affine
    lanes, size, minimum = context.lanes.count, context.storage.itemsize, memory.minimum()
    vector_bytes = context.lanes.vector_bytes
    gates, in_place = context.layout.gates, int(context.in_place)
    row_inputs = context.row_inputs

    def project(
        arguments: int, d: int, first: int, last: int, start: int, stop: int, zx: int, place: int
    ) -> None:
        a = unpack(arguments)
        base, vectors = a.scratch + d * a.packed, (a.H + lanes - 1) // lanes * gates
        bias = base + vectors * a.packed_row
        ld_x = (a.I + row_inputs * a.D * a.H) * size
        to, ld, columns = zx, vectors * vector_bytes, vectors * lanes
        if in_place != 0:
            to, ld, columns = a.y + d * a.H * size, a.D * a.H * size, a.H
        for row in range(start, stop, ROW_BLOCK):
            rows = minimum(ROW_BLOCK, stop - row)
            affine(
                *(bias, 0, a.x + row * ld_x, ld_x, a.I, base, 0, 0, 0, base, a.packed_row),
                *(to + row * ld, ld, rows, first * gates, last * gates, columns, NOTHING, a.tile),
            )

    return context.symbols.add(project)

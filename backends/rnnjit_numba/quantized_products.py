"""The matrix part of the forward kernel for layers of int8 matrices.

It replaces what `preparation` and `forward_step` do with packed weights; all else of the kernel is
the same. Weights are read as they lie: nothing is packed but the biases. The input projection of a
window of rows is computed before its steps, so that W_ih is read once for all of them.

Each thread has memory for some quantized rows (see `int8_rows`), behind its pre-activations: the
rows of x, of the state before a step, or of the outputs that are projected.

Behind the cell's parameters the argument block has, for each direction, the addresses of the scales
of W_ih, W_hh and, with a projection, W_hr, then those of their sums; and then the offset of the
quantized rows in a thread's memory, the bytes of each, and how many there may be.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from rnnjit_numba import memory
from rnnjit_numba.arguments import ForwardArguments, Int8Words, argument_count
from rnnjit_numba.context import CodegenContext
from rnnjit_numba.forward_step import add_any_step
from rnnjit_numba.int8_tiles import TILE_ROWS, Int8Products
from rnnjit_numba.preparation import Preparation, add_pack_bias, add_prepare, add_projection_at
from rnnjit_numba.simd import I64, emitting, load


class _Functions(NamedTuple):
    """What the functions of products share.

    Attributes:
        word: reads one of the words `Int8Words`.
        rows_at: the address of a thread's quantized rows.
        quantize_rows: writes them.
        product: multiplies them with a matrix.
    """

    word: Any
    rows_at: Any
    quantize_rows: Any
    product: Any


def add_int8_parts(context: CodegenContext) -> tuple[Preparation, Any]:
    """What runs before the first step and the function of a step, added to the symbols.

    They are as those of `preparation.add_preparation` and `forward_step.add_step`.
    """
    word = _word(context)
    rows_at = _add_rows_at(context, word)
    quantize_rows = _add_quantize_rows(context, word, rows_at)
    shared = _Functions(word, rows_at, quantize_rows, _add_product(context, word))
    projection_at, pack_bias = add_projection_at(context), add_pack_bias(context)
    pack, pack_out = _add_pack(context), _add_pack_out(context, projection_at)
    project = _add_project(context, shared)
    prepare = add_prepare(context, pack, pack_bias, pack_out, project)
    preparation = Preparation(pack, pack_bias, pack_out, project, prepare, projection_at)
    return preparation, _add_step(context, shared, projection_at)


def _add_step(context: CodegenContext, shared: _Functions, projection_at: Any) -> Any:
    """The step of any cell, before which the states are quantized that it multiplies."""
    gates, project_out = (
        _add_gates(context, shared),
        _add_project_out(context, shared, projection_at),
    )
    some_rows = add_any_step(context, gates, project_out)
    unpack, minimum = memory.unpack_arguments(ForwardArguments), memory.minimum()
    quantize_rows, has_product = shared.quantize_rows, context.product

    def int8_step(
        arguments: int,
        d: int,
        first: int,
        last: int,
        hoisted: int,
        stride: int,
        row: int,
        rows: int,
        h: int,
        ld_h: int,
        b: int,
        fresh: int,
        zx: int,
        place: int,
    ) -> None:
        a = unpack(arguments)
        for done in range(0, rows, a.z_rows):
            n, h_now = minimum(a.z_rows, rows - done), h + done * ld_h
            if has_product != 0:
                quantize_rows(arguments, place, h_now, ld_h, n, a.P)
            row_now, b_now = row + done * stride, b + done * stride
            some_rows(
                *(arguments, d, first, last, hoisted, stride, row_now, n),
                *(h_now, ld_h, b_now, fresh, zx, place),
            )

    return context.symbols.add(int8_step)


def _add_pack(context: CodegenContext) -> Any:
    """Weights are not packed."""

    def pack(arguments: int, d: int, first: int, last: int) -> None:
        pass

    return context.symbols.add(pack)


def _add_pack_out(context: CodegenContext, projection_at: Any) -> Any:
    """Write vectors `first` to `last` of the zeros that the projection of outputs starts from."""
    copy = memory.copy(context.storage, context.storage)
    lanes, vector_bytes = context.lanes.count, context.lanes.vector_bytes

    def pack_out(arguments: int, d: int, first: int, last: int) -> None:
        zeros = projection_at(arguments, d)
        for v in range(first, last):
            copy(zeros + v * vector_bytes, 0, 0, lanes)

    return context.symbols.add(pack_out)


def _add_quantize_rows(context: CodegenContext, word: Any, rows_at: Any) -> Any:
    """Quantize `rows` rows of k numbers, `ld` apart, for the products of the thread at `place`."""
    quantize = _tiles(context).rows.quantize()
    row_bytes = int(Int8Words.ROW_BYTES)

    def quantize_rows(arguments: int, place: int, source: int, ld: int, rows: int, k: int) -> None:
        to, ld_to = rows_at(arguments, place), word(arguments, row_bytes)
        for row in range(rows):
            quantize(source + row * ld, k, to + row * ld_to)

    return context.symbols.add(quantize_rows)


def _add_rows_at(context: CodegenContext, word: Any) -> Any:
    """The address of the quantized rows of the thread at `place`."""
    unpack = memory.unpack_arguments(ForwardArguments)
    offset = int(Int8Words.OFFSET)

    def rows_at(arguments: int, place: int) -> int:
        a = unpack(arguments)
        found: int = a.scratch + a.z + place * a.z_size + word(arguments, offset)
        return found

    return context.symbols.add(rows_at)


def _add_product(context: CodegenContext, word: Any) -> Any:
    """`out = init + a @ w.T` for `rows` quantized rows `a` and some of the matrix.

    `matrix` says which one it is: 0 W_ih, 1 W_hh, 2 W_hr. It has `gates` blocks of `units` rows of
    k numbers; `first` and `last` bound the vectors of units. Vector v of gate g is written to
    vector `v * gates + g` of a row of `out`. If `backwards` is 1, the last rows of the matrix come
    first: where one product follows the other, the end of the matrix is still in a cache.
    """
    tile, minimum = _tiles(context).tile(), memory.minimum()
    lanes, vector_bytes, size = context.lanes.count, context.lanes.vector_bytes, 4
    row_bytes, matrices = int(Int8Words.ROW_BYTES), int(Int8Words.SUMS)
    of_direction = int(Int8Words.OF_DIRECTION)

    def product(
        arguments: int,
        d: int,
        matrix: int,
        w: int,
        gates: int,
        units: int,
        k: int,
        init: int,
        ld_init: int,
        a: int,
        out: int,
        ld_out: int,
        rows: int,
        first: int,
        last: int,
        backwards: int,
    ) -> None:
        ld_a, which = word(arguments, row_bytes), d * of_direction + matrix
        scales, sums = word(arguments, which), word(arguments, which + matrices)
        # Gate by gate, so that the matrix is read in the order in which it lies.
        vectors = last - first
        for step in range(vectors * gates):
            index = vectors * gates - 1 - step if backwards != 0 else step
            gate, v = index // vectors, first + index % vectors
            unit, at = v * lanes, (v * gates + gate) * vector_bytes
            row, count = gate * units + unit, minimum(lanes, units - unit)
            done = 0
            while done < rows:
                some = 0
                for n in TILE_ROWS:
                    if some == 0 and rows - done >= n:
                        some = n
                tile(
                    *(some, init + done * ld_init + at, ld_init, a + done * ld_a, ld_a, k),
                    *(w + row * k, k, scales + row * size, sums + row * size),
                    *(out + done * ld_out + at, ld_out, count),
                )
                done += some

    return context.symbols.add(product)


def _add_project(context: CodegenContext, shared: _Functions) -> Any:
    """As `project` of `preparation`: as many rows at a time as there is memory for."""
    unpack, minimum = memory.unpack_arguments(ForwardArguments), memory.minimum()
    word, rows_at, quantize_rows, product = shared
    lanes, size, G = context.lanes.count, context.storage.itemsize, context.layout.gates
    vector_bytes, row_inputs = context.lanes.vector_bytes, context.row_inputs
    most = int(Int8Words.ROWS)

    def project(
        arguments: int, d: int, first: int, last: int, start: int, stop: int, zx: int, place: int
    ) -> None:
        a = unpack(arguments)
        w_ih = a.w_ih_0 if d == 0 else a.w_ih_1
        vectors = (a.H + lanes - 1) // lanes * G
        bias, ld = a.scratch + d * a.packed + vectors * a.packed_row, vectors * vector_bytes
        ld_x = (a.I + row_inputs * a.D * a.H) * size
        x, block = rows_at(arguments, place), word(arguments, most)
        for row in range(start, stop, block):
            rows = minimum(block, stop - row)
            quantize_rows(arguments, place, a.x + row * ld_x, ld_x, rows, a.I)
            product(
                *(arguments, d, 0, w_ih, G, a.H, a.I, bias, 0, x, zx + row * ld, ld),
                *(rows, first, last, 0),
            )

    return context.symbols.add(project)


def _add_gates(context: CodegenContext, shared: _Functions) -> Any:
    """As `gates` of `forward_step`, of quantized rows; the input projection is there already."""
    unpack, lanes = memory.unpack_arguments(ForwardArguments), context.lanes.count
    rows_at, product = shared.rows_at, shared.product
    vector_bytes, G = context.lanes.vector_bytes, context.layout.gates
    apart, has_product = int(context.layout.apart), context.product

    def gates(
        arguments: int,
        d: int,
        first: int,
        last: int,
        hoisted: int,
        stride: int,
        row: int,
        rows: int,
        h: int,
        ld_h: int,
        z: int,
        ld: int,
        zh: int,
        place: int,
    ) -> None:
        a = unpack(arguments)
        if has_product == 0:
            return
        w_hh = a.w_hh_0 if d == 0 else a.w_hh_1
        init, ld_init, out, ld_out = z, ld, z, ld
        if apart != 0:
            vectors = (a.H + lanes - 1) // lanes * G
            bias = a.scratch + d * a.packed + vectors * a.packed_row
            init, ld_init, out, ld_out = (
                bias + vectors * vector_bytes,
                0,
                zh,
                vectors * vector_bytes,
            )
        product(
            *(arguments, d, 1, w_hh, G, a.H, a.P, init, ld_init, rows_at(arguments, place)),
            *(out, ld_out, rows, first, last, row // a.B % 2),
        )

    return context.symbols.add(gates)


def _add_project_out(context: CodegenContext, shared: _Functions, projection_at: Any) -> Any:
    """As `project_out` of `forward_step`; the outputs are quantized first."""
    unpack, lanes = memory.unpack_arguments(ForwardArguments), context.lanes.count
    _, rows_at, quantize_rows, product = shared
    size = context.storage.itemsize

    def project_out(
        arguments: int,
        d: int,
        stride: int,
        row: int,
        rows: int,
        out: int,
        ld_out: int,
        block: int,
        place: int,
    ) -> None:
        a = unpack(arguments)
        to, ld_to = a.y + (row * a.D + d) * a.P * size, a.D * a.P * size * stride
        w_hr = a.w_hr_0 if d == 0 else a.w_hr_1
        quantize_rows(arguments, place, out, ld_out, rows, a.H)
        product(
            *(arguments, d, 2, w_hr, 1, a.P, a.H, projection_at(arguments, d), 0),
            *(rows_at(arguments, place), to, ld_to, rows, 0, (a.P + lanes - 1) // lanes, 0),
        )

    return context.symbols.add(project_out)


def _tiles(context: CodegenContext) -> Int8Products:
    assert context.int8 is not None, "the layer has int8 matrices"
    return context.int8


def _word(context: CodegenContext) -> Any:
    """Intrinsic `word(arguments, which)`: one of the words `Int8Words`."""
    first = argument_count(ForwardArguments, context.cell)

    def emit(builder: Any, address: Any, which: Any) -> Any:
        index = builder.add(which, I64(first))
        return load(builder, builder.add(address, builder.mul(index, I64(8))), I64, 8)

    return emitting(2, emit, returns=True)

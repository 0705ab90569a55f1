"""Preparation of the forward kernel: packs the weights and projects the input.

Weights are packed once per call into column vectors `[V][K][lanes]`, from which the register tiles
stream. The first arguments of each function are the address of a `ForwardArguments`, the direction
`d`, and a range of column vectors of the hidden features, from `first` up to but not including
`last`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from rnnjit_numba import memory
from rnnjit_numba.arguments import ForwardArguments
from rnnjit_numba.context import NOTHING, CodegenContext, CommonFunctions
from rnnjit_numba.plan import ROW_BLOCK


class Preparation(NamedTuple):
    """The functions that run before the first step.

    Attributes:
        pack: packs weights.
        pack_bias: writes the sum of the biases.
        project: writes the input projection of some rows into y.
        prepare: all of these for some columns; only the bias if weights are read in place.
    """

    pack: Any
    pack_bias: Any
    project: Any
    prepare: Any


def add_preparation(context: CodegenContext, common: CommonFunctions) -> Preparation:
    """Add the functions that run before the first step to the symbols."""
    pack, pack_bias = _add_pack(context), _add_pack_bias(context)
    project = _add_project(context, common)
    return Preparation(pack, pack_bias, project, _add_prepare(context, pack, pack_bias, project))


def _add_prepare(context: CodegenContext, pack: Any, pack_bias: Any, project: Any) -> Any:
    """Prepare some columns: write the bias and, if weights are packed, pack and project."""
    unpack = memory.unpack_arguments(ForwardArguments)

    def prepare(arguments: int, d: int, first: int, last: int) -> None:
        a = unpack(arguments)
        pack_bias(arguments, d, first, last)
        if a.direct == 0:
            pack(arguments, d, first, last)
            project(arguments, d, first, last, 0, a.N)

    return context.symbols.add(prepare)


def _add_pack(context: CodegenContext) -> Any:
    """Pack W_ih and W_hh, one after the other in each column vector.

    Column vector v holds rows `v * lanes` on of W_ih as `[I][lanes]`, then those of W_hh as
    `[H][lanes]`; I and H are padded with zeros to multiples of `lanes`.
    """
    unpack, minimum = memory.unpack_arguments(ForwardArguments), memory.minimum()
    transpose = memory.transpose(context.lanes)
    lanes, vector_bytes, size = (
        context.lanes.count,
        context.lanes.vector_bytes,
        context.lanes.itemsize,
    )

    def pack(arguments: int, d: int, first: int, last: int) -> None:
        a = unpack(arguments)
        base = a.scratch + d * a.packed
        w_ih, w_hh = (a.w_ih_0, a.w_hh_0) if d == 0 else (a.w_ih_1, a.w_hh_1)
        for v in range(first, last):
            count = minimum(lanes, a.H - v * lanes)
            for part in range(2):
                w, columns, to = w_ih, a.I, base + v * a.packed_row
                if part == 1:
                    w, columns, to = w_hh, a.H, to + a.packed_inputs
                for k in range(0, columns, lanes):
                    source = w + (v * lanes * columns + k) * size
                    block = to + k * vector_bytes
                    transpose(block, source, columns * size, count, columns - k)

    return context.symbols.add(pack)


def _add_pack_bias(context: CodegenContext) -> Any:
    """Write b_ih + b_hh, or zeros, after the packed weights."""
    unpack, minimum = memory.unpack_arguments(ForwardArguments), memory.minimum()
    copy, add = memory.copy(context.lanes), memory.add(context.lanes)
    lanes, vector_bytes = context.lanes.count, context.lanes.vector_bytes

    def pack_bias(arguments: int, d: int, first: int, last: int) -> None:
        a = unpack(arguments)
        bias = a.scratch + d * a.packed + (a.H + lanes - 1) // lanes * a.packed_row
        b_ih, b_hh = (a.b_ih_0, a.b_hh_0) if d == 0 else (a.b_ih_1, a.b_hh_1)
        for v in range(first, last):
            at = v * vector_bytes
            if b_ih != 0:
                add(bias + at, b_ih + at, b_hh + at, minimum(lanes, a.H - v * lanes))
            else:
                copy(bias + at, 0, 0, lanes)

    return context.symbols.add(pack_bias)


def _add_project(context: CodegenContext, common: CommonFunctions) -> Any:
    """Write the input projection, W_ih x + b_ih + b_hh, of rows `start` to `stop` into y."""
    unpack, affine = memory.unpack_arguments(ForwardArguments), common.affine
    lanes, size, minimum = context.lanes.count, context.lanes.itemsize, memory.minimum()

    def project(arguments: int, d: int, first: int, last: int, start: int, stop: int) -> None:
        a = unpack(arguments)
        base = a.scratch + d * a.packed
        bias = base + (a.H + lanes - 1) // lanes * a.packed_row
        ld_x, ld_y = a.I * size, a.D * a.H * size
        for row in range(start, stop, ROW_BLOCK):
            rows = minimum(ROW_BLOCK, stop - row)
            x, y = a.x + row * ld_x, a.y + row * ld_y + d * a.H * size
            affine(
                *(bias, 0, x, ld_x, a.I, base, 0, 0, 0, base, a.packed_row),
                *(y, ld_y, rows, first, last, a.H, NOTHING, a.tile),
            )

    return context.symbols.add(project)

"""The functions by which a program fills the forward kernel's argument block (see `program`).

A program runs on one thread, and its plan is that of `plan` for one. Three addresses lie before
the block: those of the packed weights, of the initial zeros and of the rows between layers. Before
these is the address of the pre-activations.
"""

from __future__ import annotations

from rnnjit import RNNSpec
from rnnjit.codegen.kernel import LINE
from rnnjit.codegen.plan import TILE_ROWS, Z_ROWS, rows_in_place
from rnnjit_numba import memory
from rnnjit_numba.arguments import ForwardArguments
from rnnjit_numba.context import CodegenContext, CommonFunctions
from rnnjit_numba.scratch import ADDRESSES, WINDOW, Layout


def add_arguments(
    context: CodegenContext, common: CommonFunctions, spec: RNNSpec, layout: Layout, tile: int
) -> None:
    """Add `count`, `zeros`, `scratch_bytes`, `begin` and `set_layer` to the symbols."""
    _add_count(context)
    _add_zeros(context, common, layout)
    _add_scratch_bytes(context, spec, layout)
    _add_begin(context, spec, layout, tile)
    _add_set_layer(context)


def _add_count(context: CodegenContext) -> None:
    """The number of rows, or -1 if the sizes are invalid."""
    read_int = memory.read_int()

    def count(T: int, B: int, sizes: int) -> int:
        total, before = T * B, B
        if sizes != 0:
            total = 0
            if T > 0 and read_int(sizes) != B:
                before = -1
            for t in range(T):
                size = read_int(sizes + 8 * t)
                before = -1 if size > before or size < 0 else size
                total += size
        if T < 1 or before < 0:
            total = -1
        return total

    context.symbols.add(count)


def _add_zeros(context: CodegenContext, common: CommonFunctions, layout: Layout) -> None:
    """Write an initial state of zeros for one layer."""
    copy_rows, row = common.copy_rows, layout.zeros
    features = row // context.lanes.itemsize
    vectors = -(-features // context.lanes.count)

    def zeros(to: int, B: int) -> None:
        copy_rows(to, row, 0, 0, B, 0, vectors, features)

    context.symbols.add(zeros)


def _add_scratch_bytes(context: CodegenContext, spec: RNNSpec, layout: Layout) -> None:
    """The bytes of scratch memory for N rows of B sequences; of a step if `stepping` is 1."""
    minimum, maximum = memory.minimum(), memory.maximum()
    D, window = spec.num_directions, 1 if spec.num_directions == 1 else 0
    block, packed, zeros = layout.block, layout.packed, layout.zeros
    z, row, between = layout.z, layout.hoisted, layout.between

    def scratch_bytes(B: int, N: int, stepping: int) -> int:
        B, N = maximum(B, 0), maximum(N, 0)
        z_rows = maximum(1, minimum(B, Z_ROWS))
        total: int = LINE - 8 + block + D * ((z_rows * z + LINE - 1) // LINE * LINE)
        if stepping == 0:
            total += packed + (B * zeros + LINE - 1) // LINE * LINE
            if B < TILE_ROWS:
                hoisted = minimum(N, WINDOW) if window != 0 else N
                total += (D * hoisted * row + LINE - 1) // LINE * LINE
        total += N * between
        return total + -total % LINE

    context.symbols.add(scratch_bytes)


def _add_begin(context: CodegenContext, spec: RNNSpec, layout: Layout, tile: int) -> None:
    """The address of the argument block in the scratch memory `room`, filled for all layers.

    If `stepping` is 1, the weights are packed already, elsewhere.
    """
    minimum, maximum, write_int = memory.minimum(), memory.maximum(), memory.write_int()
    fields = (
        *("T", "B", "N", "H", "P", "D", "sizes", "slices", "slice_rows", "stride", "parts", "tail"),
        *("hoist", "direct", "tile", "z_size", "z_rows", "hoisted_size", "window", "sync"),
        *("values", "outputs"),
    )
    write = memory.write_arguments(ForwardArguments, fields)
    layer, D, before = spec.layer(0), spec.num_directions, 8 * ADDRESSES
    few = rows_in_place(context.lanes.vector_bytes, 1)
    H, P, window = layer.hidden_size, layer.output_size, 1 if spec.num_directions == 1 else 0
    head, packed, zeros, z, row = (
        *(layout.block, layout.packed, layout.zeros),
        *(layout.z, layout.hoisted),
    )

    def begin(T: int, B: int, N: int, sizes: int, room: int, stepping: int) -> int:
        base = (room + LINE - 1) // LINE * LINE
        block, end = base + before, base + head
        z_rows = maximum(1, minimum(B, Z_ROWS))
        z_size = (z_rows * z + LINE - 1) // LINE * LINE
        direct, hoist, hoisted, limit = 0, 0, 0, N
        if stepping == 0:
            direct = 1 if T == 1 and few >= B else 0
            hoist = 1 if B < TILE_ROWS else 0
            write_int(block - 8, end)
            write_int(block - 16, end + packed)
            end += packed + (B * zeros + LINE - 1) // LINE * LINE
            if hoist != 0 and direct == 0 and row != 0:
                limit = minimum(N, WINDOW) if window != 0 else N
                hoisted = limit * row
        write_int(block - 32, end)
        end += D * z_size
        write_int(block - 24, end + (D * hoisted + LINE - 1) // LINE * LINE)
        write(
            *(block, T, B, N, H, P, D, sizes, 1, B, 1, 1, 0),
            *(hoist, direct, tile, z_size, z_rows, hoisted, limit, 0),
            *(0, 0),
        )
        return block

    context.symbols.add(begin)


def _add_set_layer(context: CodegenContext) -> None:
    """Set the arguments that follow from a layer's sizes; `weights` is where it packs its own."""
    unpack, read_int = memory.unpack_arguments(ForwardArguments), memory.read_int()
    fields = (
        *("scratch", "packed_inputs", "packed_row", "packed_out", "packed", "I", "z", "hoisted"),
    )
    write = memory.write_arguments(ForwardArguments, fields)

    def set_layer(
        block: int,
        weights: int,
        packed_inputs: int,
        packed_row: int,
        packed_out: int,
        packed: int,
        packed_direct: int,
        I: int,
    ) -> None:
        a = unpack(block)
        if a.direct != 0:
            packed_inputs, packed_row, packed_out, packed = 0, 0, 0, packed_direct
        # Offsets from the packed weights, wherever these are.
        z = read_int(block - 32) - weights
        write(
            *(block, weights, packed_inputs, packed_row, packed_out, packed, I),
            *(z, z + a.D * a.z_size),
        )

    context.symbols.add(set_layer)

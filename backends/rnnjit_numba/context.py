"""Code that the kernels of one cell, element type and vector unit share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from rnnjit.codegen import Isa
from rnnjit.codegen.cell_layout import CellLayout
from rnnjit.codegen.computed import computed
from rnnjit.ir import CellSpec
from rnnjit_numba import amx_products, memory, pointwise
from rnnjit_numba.direct import DIRECT_WIDTHS, direct_transposed, transposed_rows
from rnnjit_numba.int8_tiles import Int8Products
from rnnjit_numba.simd import Lanes
from rnnjit_numba.storage import BFloat16, Storage, storage_of
from rnnjit_numba.symbol_table import SymbolTable
from rnnjit_numba.tile_shapes import TileShape, candidates, outer_candidates, small_shapes
from rnnjit_numba.tiles import AFFINE_ARGUMENTS, FOLD, TileSet
from rnnjit_numba.work_stealing import add_next_task

#: The epilogue of a block, after its matrix part: nothing, or the cell's step.
NOTHING, STEP = 0, 1


@dataclass(frozen=True)
class CodegenContext:
    """Intrinsics and constants for one cell and element type.

    Attributes:
        cell: one that `cell_layout.why_not_layout` has nothing against.
        storage: how the numbers of tensors lie in memory.
        tiles: the register tiles.
        small_shapes: of the tiles for the rows that a larger tile leaves.
        int8: how int8 matrices are multiplied; None where matrices lie as `storage` says.
        symbols: where the kernels' functions are collected.
    """

    cell: CellSpec
    storage: Storage
    tiles: TileSet
    small_shapes: tuple[TileShape, ...]
    int8: Int8Products | None = None
    symbols: SymbolTable = field(init=False)

    @property
    def lanes(self) -> Lanes:
        """What is computed with: element type and vector width."""
        return self.storage.lanes

    @property
    def computed(self) -> Storage:
        """How numbers lie in memory that are no tensor's: as they are computed with."""
        return Storage(self.lanes)

    @property
    def layout(self) -> CellLayout:
        """How the cell's gates lie in memory."""
        return CellLayout(self.cell)

    @property
    def in_place(self) -> bool:
        """Whether pre-activations lie in y, where the state replaces them."""
        return self.layout.in_place and self.storage == self.computed and self.int8 is None

    @property
    def amx(self) -> BFloat16 | None:
        """The storage, if its products are those of tile registers."""
        storage = self.storage
        return storage if isinstance(storage, BFloat16) and storage.amx else None

    @property
    def product_tile(self) -> tuple[Any, int]:
        """The intrinsic that `affine` cuts blocks of products into, and its arguments."""
        if self.amx is not None:
            return amx_products.bands(self.amx), amx_products.BANDS_ARGUMENTS
        return self.tiles.affine(), AFFINE_ARGUMENTS

    @property
    def product(self) -> int:
        """1 if the cell has a recurrent product, else 0: P times this is the columns of W_hh."""
        return int(self.cell.has_product)

    @property
    def row_inputs(self) -> int:
        """R: the columns of x are I + R*D*H."""
        return len(self.cell.row_inputs)

    def __post_init__(self) -> None:
        # Distinct for each library that may be linked into one program.
        suffix = f"{self.storage.suffix}_{self.cell.digest[:12]}"
        suffix += "_int8" if self.int8 else ""
        object.__setattr__(self, "symbols", SymbolTable(suffix))

    @staticmethod
    def of(
        isa: Isa, dtype: torch.dtype, cell: CellSpec, *, quantized: bool = False
    ) -> CodegenContext:
        """The context of a cell's kernels for tensors of a dtype, and perhaps int8 matrices."""
        size, small = computed(dtype).itemsize, small_shapes(isa)
        lanes = Lanes(8 * size, isa.lanes(size), isa.fma)
        wide = isa.vector_bytes == 64
        storage = storage_of(lanes, dtype, isa.features, wide=wide, amx=isa.amx)
        shapes = tuple(sorted({*candidates(isa), *small}, reverse=True))
        tiles = TileSet(storage, shapes, outer_candidates(isa))
        int8 = Int8Products.of(isa) if quantized else None
        return CodegenContext(cell, storage, tiles, small, int8)


class CommonFunctions(NamedTuple):
    """The functions that both kernels call, see `add_common`.

    `copy_rows` copies rows of tensors, `copy_computed` rows of numbers as they are computed with,
    and `store_rows` such numbers to rows of tensors. `affine` and `product` multiply with
    matrices of the tensors' dtype; they are None if these are int8.
    """

    affine: Any
    copy_rows: Any
    copy_computed: Any
    store_rows: Any
    product: Any
    next_task: Any


def add_common(context: CodegenContext) -> CommonFunctions:
    """Add the functions that both kernels call to the symbols."""
    affine = None if context.int8 else _affine(context)
    stored, computed = context.storage, context.computed
    copy_rows = copy_computed = store_rows = _add_copy_rows(context, stored, stored, "copy_rows")
    if stored != computed:
        copy_computed = _add_copy_rows(context, computed, computed, "copy_computed")
        store_rows = _add_copy_rows(context, computed, stored, "store_rows")
    return CommonFunctions(
        affine,
        copy_rows,
        copy_computed,
        store_rows,
        _add_product_direct(context) if context.int8 is None else None,
        add_next_task(context.symbols),
    )


def _affine(context: CodegenContext) -> Any:
    """`affine` by register tiles, or by tile registers."""
    return _add_affine(context) if context.amx is None else _add_affine_amx(context)


def _add_affine(context: CodegenContext) -> Any:
    """The function that computes any block of `init + x @ w1 + h @ w2`, or nn.RNN's step of it.

    It cuts the rows into bands of register tiles: by the tile that `tiling` names (see
    `tile_shapes.Tiling.code`), and the rest by smaller ones. Every step of the forward and backward
    recurrence, the hoisted input projection and grad_x are computed by this function. Its arguments
    are those of the tile (see `TileSet.affine`), for `rows` rows, column vectors `first` to `last`
    of `columns` columns, and the epilogue, `NOTHING` or `STEP`.
    """
    band = _add_band(context)
    # 16 * rows + vectors of each; 0 for the shape that a call names.
    shapes = (0, *(16 * shape.rows + shape.vectors for shape in context.small_shapes))
    step = pointwise.step(context.lanes, context.cell, in_place=context.in_place)
    lanes, size = context.lanes.count, context.lanes.itemsize
    # A single row costs as much as two, since all weights are read for it: 3 + 2 rows cost less
    # than 4 + 1.
    thirds = 1 if 3 in dict(context.small_shapes) else 0

    def affine(
        init: int,
        ld_init: int,
        x: int,
        ld_x: int,
        k1: int,
        w1: int,
        h: int,
        ld_h: int,
        k2: int,
        w2: int,
        ld_w: int,
        out: int,
        ld_out: int,
        rows: int,
        first: int,
        last: int,
        columns: int,
        epilogue: int,
        tiling: int,
    ) -> None:
        # Rows without a gap, whose last vectors would be ragged, make the step as one run.
        run = 0
        if epilogue == STEP and first == 0 and ld_out == columns * size and columns % lanes != 0:
            run = rows * columns if last * lanes >= columns else 0
        if run > 0:
            epilogue = NOTHING
        k_block, done = tiling >> 8, 0
        for shape in shapes:
            chosen = shape if shape > 0 else tiling & 255
            tile_rows, widest = chosen >> 4, chosen & 15
            stop = done + (rows - done) // tile_rows * tile_rows
            if rows - stop == 1 and stop > done and tile_rows > 3 and thirds:
                stop -= tile_rows
            band(
                *(init, ld_init, x, ld_x, k1, w1, h, ld_h, k2, w2, ld_w, out, ld_out),
                *(done, stop, first, last, columns, epilogue, tile_rows, widest, k_block),
            )
            done = stop
        for at in range(0, run, lanes):
            step(out + at * size, lanes if at + lanes <= run else run - at)

    return context.symbols.add(affine)


def _add_affine_amx(context: CodegenContext) -> Any:
    """As `_add_affine`, by tile registers (see `amx_products`); `tiling` is not used.

    Bands of 32 rows are computed by pairs of column vectors, whose weights stay in a cache
    meanwhile, and up to 16 rows by four: then as many sums are under way.
    """
    tile, _ = context.product_tile
    lanes, vector_bytes = context.lanes.count, context.lanes.vector_bytes

    def affine(
        init: int,
        ld_init: int,
        x: int,
        ld_x: int,
        k1: int,
        w1: int,
        h: int,
        ld_h: int,
        k2: int,
        w2: int,
        ld_w: int,
        out: int,
        ld_out: int,
        rows: int,
        first: int,
        last: int,
        columns: int,
        epilogue: int,
        tiling: int,
    ) -> None:
        done = 0
        while done < rows:
            left = rows - done
            bands, upper, lower = left // 32, 16, 16
            if bands == 0:
                bands, upper, lower = 1, left, 0
                if left > 16:
                    upper, lower = 16, left - 16
            tall, widest = (2, 2) if lower > 0 else (1, 4)
            v = first
            while v < last:
                width = widest
                while v + width > last:
                    width //= 2
                at = v * vector_bytes
                tail = columns - (v + width - 1) * lanes
                if tail > lanes:
                    tail = lanes
                tile(
                    *(16 * tall + width, 256 * upper + lower, bands),
                    *(init + done * ld_init + at, ld_init),
                    *(x + done * ld_x, ld_x, k1, w1 + v * ld_w),
                    *(h + done * ld_h, ld_h, k2, w2 + v * ld_w, ld_w),
                    *(out + done * ld_out + at, ld_out * 256 + tail),
                )
                v += width
            done += bands * (upper + lower)

    return context.symbols.add(affine)


def _add_band(context: CodegenContext) -> Any:
    """Rows `done` to `stop` of `affine` by tiles of `tile_rows` rows and at most `widest` vectors.

    Columns are cut as evenly as the widths of tiles allow. Each column block is summed over blocks
    of at most `k_block` terms, one after the other, whose weights stay in the first-level cache
    while the tiles of all rows read them; totals are in `out` meanwhile. 0 is one block of all.
    """
    tile = context.tiles.affine()
    step = pointwise.step(context.lanes, context.cell, in_place=context.in_place)
    lanes, vector_bytes = context.lanes.count, context.lanes.vector_bytes
    size, term_bytes = context.storage.itemsize, context.storage.packed_bytes

    def band(
        init: int,
        ld_init: int,
        x: int,
        ld_x: int,
        k1: int,
        w1: int,
        h: int,
        ld_h: int,
        k2: int,
        w2: int,
        ld_w: int,
        out: int,
        ld_out: int,
        done: int,
        stop: int,
        first: int,
        last: int,
        columns: int,
        epilogue: int,
        tile_rows: int,
        widest: int,
        k_block: int,
    ) -> None:
        blocks_1, blocks = 0, 1
        if k_block > 0 and k1 + k2 > k_block:
            blocks_1 = (k1 + k_block - 1) // k_block
            blocks = blocks_1 + (k2 + k_block - 1) // k_block
        v = first if stop > done else last
        while v < last:
            # As even as possible, among the widths for which there is a tile.
            tiles = (last - v + widest - 1) // widest
            width = (last - v + tiles - 1) // tiles
            if width < widest and width > 2:
                width = 4 if width >= 4 else 2
            at = v * vector_bytes
            tail = columns - (v + width - 1) * lanes
            if tail > lanes:
                tail = lanes
            for block in range(blocks):
                a_1, ld_1, n_1, b_1 = x, ld_x, k1, w1 + v * ld_w
                a_2, n_2, b_2 = h, k2, w2 + v * ld_w
                if blocks > 1:
                    low, n_2 = block * k_block, 0
                    if block >= blocks_1:
                        low -= blocks_1 * k_block
                        a_1, ld_1, n_1, b_1 = h, ld_h, k2, b_2
                    a_1, b_1 = a_1 + low * size, b_1 + low * term_bytes
                    n_1 = n_1 - low if n_1 - low < k_block else k_block
                start, ld_start = init + at, ld_init
                if block > 0:
                    start, ld_start = out + at, ld_out
                for row in range(done, stop, tile_rows):
                    to = out + row * ld_out + at
                    tile(
                        *(16 * tile_rows + width, start + row * ld_start, ld_start),
                        *(a_1 + row * ld_1, ld_1, n_1, b_1),
                        *(a_2 + row * ld_h, ld_h, n_2, b_2),
                        *(ld_w, to, ld_out * 256 + tail),
                    )
                    if epilogue == NOTHING or block < blocks - 1:
                        continue
                    for r in range(tile_rows):
                        for i in range(width):
                            count = tail if i == width - 1 else lanes
                            step(to + r * ld_out + i * vector_bytes, count)
            v += width

    return context.symbols.add(band)


def _add_copy_rows(context: CodegenContext, read: Storage, written: Storage, name: str) -> Any:
    """The function `name` that copies column vectors of rows; zeros if `source` is 0."""
    minimum = memory.minimum()
    copy = memory.copy(read, written)
    lanes, read_bytes, vector_bytes = context.lanes.count, read.vector_bytes, written.vector_bytes
    read_size, size = read.itemsize, written.itemsize

    def copy_rows(
        to: int,
        ld_to: int,
        source: int,
        ld_source: int,
        rows: int,
        first: int,
        last: int,
        columns: int,
    ) -> None:
        whole = first == 0 and last * lanes >= columns and ld_to == columns * size
        if whole and (source == 0 or ld_source == columns * read_size):
            # Rows without a gap are one long row.
            columns, rows = rows * columns, minimum(rows, 1)
            last = (columns + lanes - 1) // lanes
        for row in range(rows):
            for v in range(first, last):
                at = v * vector_bytes
                count = columns - v * lanes
                if count > lanes:
                    count = lanes
                place = source + row * ld_source + v * read_bytes if source != 0 else 0
                copy(to + row * ld_to + at, place, count, count)

    return context.symbols.add(copy_rows, name)


def _add_product_direct(context: CodegenContext) -> Any:
    """The function that computes `to = init + a @ w` for few rows and a `w` that is not packed.

    `w` is `[k, columns]`, row-major; column vectors `first` to `last` are computed. It goes through
    `w` in blocks of rows, each of which stays within a few pages.
    """
    tile, widest = direct_transposed(context.storage), DIRECT_WIDTHS[0]
    row_counts = transposed_rows(context.storage)
    lanes, vector_bytes = context.lanes.count, context.lanes.vector_bytes
    size, read_bytes = context.storage.itemsize, context.storage.vector_bytes

    def product_direct(
        init: int,
        ld_init: int,
        a: int,
        ld_a: int,
        k: int,
        w: int,
        columns: int,
        to: int,
        ld_to: int,
        rows: int,
        first: int,
        last: int,
    ) -> None:
        for low in range(0, k, FOLD):
            terms = FOLD if low + FOLD <= k else k - low
            v = first
            while v < last:
                width = widest if v + widest <= last else 1
                at = v * vector_bytes
                tail = columns - (v + width - 1) * lanes
                if tail > lanes:
                    tail = lanes
                done = 0
                while done < rows:
                    some = 0
                    for n in row_counts:
                        if some == 0 and rows - done >= n:
                            some = n
                    out = to + done * ld_to + at
                    start, ld_start = init + done * ld_init + at, ld_init
                    if low > 0:
                        start, ld_start = out, ld_to
                    tile(
                        *(16 * some + width, start, ld_start, a + done * ld_a + low * size, ld_a),
                        *(terms, w + low * columns * size + v * read_bytes, columns * size),
                        *(out, ld_to * 256 + tail),
                    )
                    done += some
                v += width

    return context.symbols.add(product_direct)

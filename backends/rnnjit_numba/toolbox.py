"""Everything that the kernels of one element type on one vector unit share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from rnnjit_numba import memory, pointwise
from rnnjit_numba.direct import DIRECT_ROWS, DIRECT_WIDTHS, direct_transposed
from rnnjit_numba.lanes import Lanes
from rnnjit_numba.sharing import add_next_share
from rnnjit_numba.tiles import FOLD, TileSet
from rnnjit_numba.units import Units

#: What happens to a block after the matrix part: nothing, or the cell's activation or gradient.
NOTHING, ACTIVATE, GRADIENT = 0, 1, 2


@dataclass(frozen=True)
class Toolbox:
    """Intrinsics and constants for one element type.

    Attributes:
        lanes: element type and vector width.
        shapes: the register tiles, (rows, most vectors).
        units: where the kernels' functions are collected.
    """

    lanes: Lanes
    shapes: tuple[tuple[int, int], ...]
    units: Units = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "units", Units(f"f{self.lanes.bits}"))

    @property
    def tiles(self) -> TileSet:
        """The register tiles."""
        return TileSet(self.lanes, self.shapes)


class Common(NamedTuple):
    """The functions that both kernels call."""

    affine: Any
    copy_rows: Any
    product: Any
    next_share: Any


def add_common(tools: Toolbox) -> Common:
    """Add the functions that both kernels call to the units."""
    return Common(
        _add_affine(tools),
        _add_copy_rows(tools),
        _add_product_direct(tools),
        add_next_share(tools.units),
    )


def _add_affine(tools: Toolbox) -> Any:
    """The function that computes any block of `epilogue(init + x @ w1 + h @ w2)`.

    It cuts the block into register tiles: rows by the largest tile that fits, columns as evenly as
    the tile's width allows. Every step of the forward and backward recurrence, the hoisted input
    projection and grad_x are this function. Its arguments are those of the tile (see
    `TileSet.affine`), for `rows` rows, column vectors `first` to `last` of `columns` columns, and
    for the epilogue: the `cell`, and for GRADIENT the addresses of `grad_y` (or 0) and of the
    `states` y, both with rows `ld_states` bytes apart.
    """
    tile = tools.tiles.affine()
    activate = pointwise.activate(tools.lanes)
    gradient = pointwise.activate_gradient(tools.lanes)
    shapes = tools.shapes
    lanes, vector_bytes = tools.lanes.count, tools.lanes.vector_bytes
    # A row alone costs as much as two, since all weights are read for it: 3 + 2 rows cost less than
    # 4 + 1.
    thirds = 1 if 3 in dict(shapes) else 0

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
        cell: int,
        grad_y: int,
        states: int,
        ld_states: int,
    ) -> None:
        done = 0
        for tile_rows, widest in shapes:
            stop = done + (rows - done) // tile_rows * tile_rows
            if rows - stop == 1 and stop > done and tile_rows > 3 and thirds:
                stop -= tile_rows
            v = first if stop > done else last
            while v < last:
                # As even as can be, of the widths for which there is a tile.
                tiles = (last - v + widest - 1) // widest
                width = (last - v + tiles - 1) // tiles
                if width < widest and width > 2:
                    width = 4 if width >= 4 else 2
                at = v * vector_bytes
                tail = columns - (v + width - 1) * lanes
                if tail > lanes:
                    tail = lanes
                for row in range(done, stop, tile_rows):
                    block = out + row * ld_out + at
                    tile(
                        16 * tile_rows + width,
                        init + row * ld_init + at,
                        ld_init,
                        x + row * ld_x,
                        ld_x,
                        k1,
                        w1 + v * ld_w,
                        h + row * ld_h,
                        ld_h,
                        k2,
                        w2 + v * ld_w,
                        ld_w,
                        block,
                        ld_out * 256 + tail,
                    )
                    if epilogue == NOTHING:
                        continue
                    for r in range(tile_rows):
                        for i in range(width):
                            count = tail if i == width - 1 else lanes
                            place = block + r * ld_out + i * vector_bytes
                            if epilogue == ACTIVATE:
                                activate(cell, place, count)
                            else:
                                other = (row + r) * ld_states + at + i * vector_bytes
                                grad = grad_y + other if grad_y != 0 else 0
                                gradient(cell, place, grad, states + other, count)
                v += width
            done = stop

    return tools.units.add(affine)


def _add_copy_rows(tools: Toolbox) -> Any:
    """The function that copies column vectors of rows; zeros if `source` is 0."""
    copy = memory.copy(tools.lanes)
    lanes, vector_bytes = tools.lanes.count, tools.lanes.vector_bytes

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
        for row in range(rows):
            for v in range(first, last):
                at = v * vector_bytes
                count = columns - v * lanes
                if count > lanes:
                    count = lanes
                place = source + row * ld_source + at if source != 0 else 0
                copy(to + row * ld_to + at, place, count, count)

    return tools.units.add(copy_rows)


def _add_product_direct(tools: Toolbox) -> Any:
    """The function that computes `to = init + a @ w` for few rows and a `w` that is not packed.

    `w` is `[k, columns]`, row-major; column vectors `first` to `last` are computed. It goes through
    `w` in blocks of rows, each of which stays within a few pages.
    """
    tile = direct_transposed(tools.lanes)
    lanes, vector_bytes, size = tools.lanes.count, tools.lanes.vector_bytes, tools.lanes.itemsize

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
                width = DIRECT_WIDTHS[0] if v + DIRECT_WIDTHS[0] <= last else 1
                at = v * vector_bytes
                tail = columns - (v + width - 1) * lanes
                if tail > lanes:
                    tail = lanes
                done = 0
                while done < rows:
                    some = 0
                    for n in DIRECT_ROWS:
                        if some == 0 and rows - done >= n:
                            some = n
                    out = to + done * ld_to + at
                    start, ld_start = init + done * ld_init + at, ld_init
                    if low > 0:
                        start, ld_start = out, ld_to
                    tile(
                        *(16 * some + width, start, ld_start, a + done * ld_a + low * size, ld_a),
                        *(terms, w + low * columns * size + at, columns * size),
                        *(out, ld_to * 256 + tail),
                    )
                    done += some
                v += width

    return tools.units.add(product_direct)

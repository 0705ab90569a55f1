"""The register tiles that kernels are compiled with; which of them a call uses is data.

A tile keeps rows * vectors accumulators in vector registers, besides vectors of weights and a
broadcast element. Which shape is fastest depends on the processor: on how many multiply-adds it
begins in a cycle, after how many cycles they end, and how fast it reads the weights. The kernels
have the tiles of all shapes, and `tile_choice` chooses. No choice changes a bit of a result.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch

from rnnjit.codegen import Isa


class TileShape(NamedTuple):
    """The shape of a register tile: rows, and adjacent column vectors."""

    rows: int
    vectors: int

    def __str__(self) -> str:
        return f"{self.rows}x{self.vectors}"


class Tiling(NamedTuple):
    """How the kernels cut products into register tiles.

    Attributes:
        shape: of the tiles that most rows of a block are cut into, one of `candidates`.
        k_block: terms that a tile sums before the next rows' tile reads the same weights; 0 for all
            terms. Weights of so few terms stay in the first-level cache.
    """

    shape: TileShape
    k_block: int = 0

    def __str__(self) -> str:
        return f"{self.shape}/{self.k_block}" if self.k_block else str(self.shape)

    @property
    def code(self) -> int:
        """One number for the kernels: 256 * `k_block` + 16 * rows + vectors."""
        return self.k_block * 256 + self.shape.rows * 16 + self.shape.vectors


#: Values of `Tiling.k_block`: multiples of `tiles.FOLD`, so that chains of sums stay whole.
K_BLOCKS = (0, 128, 256)

_SHAPES = {
    32: ((14, 2), (12, 2), (9, 3), (8, 3), (6, 4), (5, 5), (4, 4)),
    16: ((14, 1), (6, 2), (4, 3), (3, 4), (2, 6)),
    12: ((4, 2), (3, 3), (2, 4)),
}
_OUTER_SHAPES = {
    32: ((12, 2), (8, 3), (6, 4), (4, 4)),
    16: ((6, 2), (4, 3), (3, 4)),
    12: ((4, 2), (3, 3), (2, 4)),
}
_SMALL_SHAPES: dict[int, tuple[tuple[int, int], ...]] = {
    32: ((4, 4), (3, 4), (2, 8), (1, 8)),
    16: ((4, 3), (3, 4), (2, 4), (1, 8)),
    12: ((3, 3), (2, 4), (1, 8)),
}


def as_tiles_see(isa: Isa, dtype: torch.dtype) -> Isa:
    """An instruction set, with the registers that the tiles of a dtype may fill.

    Where pairs of bfloat16 are widened, each operand takes two registers instead of one. There are
    enough of 32.
    """
    widens = dtype is torch.bfloat16 and not isa.amx
    return replace(isa, registers=12) if widens and isa.registers == 16 else isa


def candidates(isa: Isa) -> tuple[TileShape, ...]:
    """The shapes among which a call chooses.

    Up to 28 accumulators in 32 registers, 14 in 16, and 9 where operands need more of them.
    """
    return _of(_SHAPES, isa)


def outer_candidates(isa: Isa) -> tuple[TileShape, ...]:
    """The same for sums of outer products."""
    return _of(_OUTER_SHAPES, isa)


def small_shapes(isa: Isa) -> tuple[TileShape, ...]:
    """The shapes for the rows that a larger tile leaves, rows descending and ending with 1."""
    return _of(_SMALL_SHAPES, isa)


def tilings(isa: Isa) -> tuple[Tiling, ...]:
    """The tilings among which a call chooses."""
    return tuple(Tiling(shape, k_block) for shape in candidates(isa) for k_block in K_BLOCKS)


def all_tilings(isa: Isa) -> tuple[Tiling, ...]:
    """These, and the tiles for the rows that they leave."""
    return tuple(dict.fromkeys((*tilings(isa), *map(Tiling, small_shapes(isa)))))


def _of(shapes: dict[int, tuple[tuple[int, int], ...]], isa: Isa) -> tuple[TileShape, ...]:
    fitting = max(count for count in shapes if count <= isa.registers)
    return tuple(TileShape(*shape) for shape in shapes[fitting])

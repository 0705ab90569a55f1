"""The shapes of the register tiles for a vector unit."""

from __future__ import annotations

from rnnjit.codegen import Isa


def tile_shapes(isa: Isa) -> tuple[tuple[int, int], ...]:
    """Register tiles, largest first: (rows, most adjacent vectors).

    Rows are powers of two, each half of the one before, down to 1. A tile's accumulators fit into
    the registers together with its vectors of weights and one broadcast. Two multiply-adds per
    cycle, with a latency of four cycles, need at least eight accumulators.
    """
    if isa.registers >= 32:
        return ((8, 3), (4, 6), (2, 8), (1, 8))
    return ((4, 3), (2, 5), (1, 8))

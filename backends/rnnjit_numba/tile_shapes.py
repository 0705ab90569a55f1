"""The shapes of the register tiles for a vector unit."""

from __future__ import annotations

from rnnjit.codegen import Isa


def tile_shapes(isa: Isa) -> tuple[tuple[int, int], ...]:
    """Register tiles, largest first: (rows, most adjacent vectors).

    A tile keeps rows * vectors accumulators in registers, besides the vectors of weights and one
    broadcast. Two multiply-adds per cycle, with a latency of four cycles, need at least eight.
    """
    if isa.registers >= 32:
        return ((8, 3), (4, 4), (3, 4), (2, 8), (1, 8))
    return ((4, 3), (2, 4), (1, 8))

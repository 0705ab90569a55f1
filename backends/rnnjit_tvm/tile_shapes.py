"""The register tiles that a vector unit gets."""

from __future__ import annotations

from rnnjit.codegen import Isa


def tile_shapes(isa: Isa) -> tuple[tuple[int, int], ...]:
    """Register tiles, largest first: (rows, most vectors beside each other).

    Rows are powers of two, each half of the one before, down to 1. A tile's accumulators fit into
    the registers beside a vector of weights for each column and one broadcast; two multiply-adds a
    cycle at four cycles' latency want at least eight accumulators.
    """
    if isa.registers >= 32:
        return ((8, 3), (4, 6), (2, 8), (1, 8))
    return ((4, 3), (2, 5), (1, 8))

"""The register tiles that a vector unit gets."""

from __future__ import annotations

from rnnjit.codegen import Isa


def tile_shapes(isa: Isa) -> tuple[tuple[int, int], ...]:
    """Register tiles, largest first: (rows, widest number of vectors beside each other).

    A tile keeps rows * vectors accumulators in registers, beside the vectors it multiplies by and
    one broadcast; two multiply-adds a cycle at four cycles' latency want at least eight.
    """
    if isa.registers >= 32:
        return ((8, 3), (4, 4), (3, 4), (2, 8), (1, 8))
    return ((4, 3), (2, 4), (1, 8))

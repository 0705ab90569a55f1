"""Rates of the register tiles by processor: where a choice starts before anything is measured.

The figures are GFLOP/s of one thread, of which only the ratios matter, for float32 and float64
alike. What has not been seen starts with the rates of a processor whose vector unit is like its.
"""

from __future__ import annotations

from typing import NamedTuple

from rnnjit.codegen import Isa
from rnnjit_numba.tile_shapes import TileShape, Tiling, all_tilings, outer_candidates


class Rates(NamedTuple):
    """How fast one thread runs each tile, in GFLOP/s: two operations for each multiply-add.

    Attributes:
        tiles: of blocks of products.
        outer: of sums of outer products.
    """

    tiles: dict[Tiling, float]
    outer: dict[TileShape, float]


class _Family(NamedTuple):
    """Processors whose vector units are alike.

    Attributes:
        tiles: the rate of each shape.
        blocked: by how much a block of k changes it.
        outer: the best tile of sums of outer products.
    """

    tiles: dict[str, float]
    blocked: float
    outer: str


#: Two multiply-adds of 512 bits a cycle, each four cycles long: few accumulators do not cover the
#: latency. By a prototype of these loops in C on a processor of Intel's.
_TWO_512 = _Family(
    {
        "14x2": 61,
        "12x2": 62,
        "9x3": 99,
        "8x3": 102,
        "6x4": 108,
        "5x5": 96,
        "4x4": 78,
        "3x4": 62,
        "2x8": 72,
        "1x8": 42,
    },
    1.02,
    "6x4",
)
#: The same, with a second-level cache of 1 MiB: whole layers, on two threads of a Zen 5.
_TWO_512_ZEN = _Family(
    {
        "14x2": 81,
        "12x2": 94,
        "9x3": 93,
        "8x3": 100,
        "6x4": 97,
        "5x5": 93,
        "4x4": 98,
        "3x4": 95,
        "2x8": 72,
        "1x8": 42,
    },
    0.91,
    "6x4",
)
#: One multiply-add of 512 bits a cycle, or two of half the width.
_ONE_512 = _Family(
    {
        "14x2": 82,
        "12x2": 88,
        "9x3": 90,
        "8x3": 90,
        "6x4": 90,
        "5x5": 91,
        "4x4": 92,
        "3x4": 90,
        "2x8": 82,
        "1x8": 47,
    },
    0.97,
    "4x4",
)
#: Two multiply-adds of 256 bits a cycle, 16 registers.
_AVX2 = _Family(
    {
        "14x1": 55,
        "6x2": 68,
        "4x3": 67,
        "3x4": 66,
        "2x6": 62,
        "2x4": 64,
        "1x8": 46,
    },
    0.97,
    "6x2",
)
#: The same, of operands that are widened: bfloat16 without dot products.
_AVX2_WIDENED = _Family({"4x2": 70, "3x3": 68, "2x4": 69, "1x8": 57}, 0.97, "2x4")
#: Two to four multiply-adds of 128 bits a cycle, 32 registers; not measured.
_NEON = _Family({**_TWO_512.tiles, "14x2": 80, "12x2": 90}, 0.97, "8x3")
_BY_ISA = {"avx512": _TWO_512, "avx2": _AVX2, "neon": _NEON, "plain": _AVX2}
_BY_CPU = {
    "znver4": {"avx512": _ONE_512},
    "znver5": {"avx512": _TWO_512_ZEN},
    "icelake-client": {"avx512": _ONE_512},
    "tigerlake": {"avx512": _ONE_512},
    "rocketlake": {"avx512": _ONE_512},
}


def start_rates(isa: Isa) -> Rates:
    """The rates of an instruction set on the processor that it names, without measuring."""
    family = _BY_CPU.get(isa.cpu, {}).get(isa.name) or _BY_ISA.get(isa.name)
    if isa.registers < 16:
        family = _AVX2_WIDENED
    elif family is None:
        family = _TWO_512 if isa.registers >= 32 else _AVX2
    tiles = {
        tile: family.tiles[str(tile.shape)] * (family.blocked if tile.k_block else 1.0)
        for tile in all_tilings(isa)
    }
    outer = {shape: float(str(shape) == family.outer) for shape in outer_candidates(isa)}
    return Rates(tiles, outer)

"""What is compiled for a call and what is not, in one place.

Speed-up over eager, forward / forward+backward, measured on one thread of an AMD EPYC of the
Zen 4 generation (torch 2.13, float32 tanh), by form of the product (R rows, U panels) and steps K:

    T, B, I, H          R=4, K=8      R=4, K=16     U=4, K=16     U=4, K=32     K=1
    100, 1, 64, 64      0.77 / 1.96   0.89 / 2.26   1.10 / 2.70   1.15 / 2.81   1.02 / 1.80
    100, 1, 128, 256    0.74 / 1.85   0.82 / 2.00   1.25 / 2.68   1.26 / 2.79   1.01 / 1.95
    100, 1, 512, 512    0.87 / 2.06   0.80 / 2.17   1.18 / 2.72   1.26 / 2.81   1.02 / 2.20
    100, 8, 128, 256    1.33 / 1.59   1.44 / 1.71   1.02 / 1.37   1.00 / 1.38   1.07 / 1.35
    100, 32, 128, 256   1.17 / 1.20   1.21 / 1.26   0.86 / 0.96   0.83 / 0.97   1.01 / 1.15
    28, 64, 28, 128     1.11 / 1.12   1.09 / 1.13   0.90 / 0.98   T < K         0.99 / 1.09
    1000, 16, 64, 128   1.55 / 1.67   1.74 / 1.73   1.34 / 1.48   1.34 / 1.56   1.02 / 1.41

XXX
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from rnnjit import LayerSpec, Rows
from rnnjit.cells import Cell
from rnnjit.reference import has_operator, has_primitive

#: Calls of fewer steps compile nothing.
_FEWEST = 16
#: Products in a chunk, G for each step, and its steps: how long a chunk compiles grows with both.
_PRODUCTS, _STEPS = 16, 8
#: Columns of a panel: a vector register of AVX-512 float32, and a multiple of every narrower one.
LANES = 16
#: From this many multiply-adds per step on, several threads share a chunk. They synchronise twice a
#: step; this is an estimate of the time that takes, not measured.
THREAD_WORK = 2**18
#: Bytes of W_hh up to which a tile is faster than torch's product. A tile reads all of W_hh for
#: every four rows, which is slow where a core's cache does not hold it.
_CACHED = 2 << 20
#: From this many steps on, a compiled dense forward pass alone is faster than torch's operator.
#: Measured on two threads: 0.98 times as fast as eager for (28, 64, 28, 128).
_FORWARD_STEPS = 32


class Tile(NamedTuple):
    """The register tile of a compiled product.

    Attributes:
        rows: R, rows that are multiplied at once.
        lanes: L, columns of a panel.
    """

    rows: int
    lanes: int = LANES

    def padded(self, features: int) -> int:
        """`features` rounded up to whole panels."""
        return _up(features, self.lanes)

    def padded_rows(self, batch: int) -> int:
        """`batch` rounded up to a multiple of R."""
        return _up(batch, self.rows)


#: Every vector of weights that is read serves four rows.
ROWS = Tile(4)
#: No tile: torch's own matrix product, which has its own tiles.
MATRIX = Tile(1, 1)


class Plan(NamedTuple):
    """What is compiled.

    Attributes:
        steps: K, time steps of a chunk.
        tile: form of the product.
        threads: how many threads share a chunk, on the CPU.
    """

    steps: int
    tile: Tile
    threads: int


def plan(
    layer: LayerSpec, rows: Rows, dtype: torch.dtype, device: str, threads: int, keep: bool
) -> Plan | None:
    """What is compiled for a call, or None if torch's own operators are faster.

    Args:
        layer: what the layer is.
        rows: how its rows are divided into time steps.
        dtype: of its tensors.
        device: type of the device.
        threads: the most that may be used.
        keep: whether a backward pass may follow, which gains more from being compiled.
    """
    if rows.T < _FEWEST or not rows.N:
        return None
    cell, steps = layer.cell, steps_of(layer.cell)
    if device != "cpu":
        return Plan(steps, MATRIX, 1)
    if dtype not in (torch.float32, torch.float64):
        return None
    G, H, dense = len(cell.gates), layer.hidden_size, rows.batch_sizes is None
    if dense and has_primitive(layer, dtype):
        return None
    alone = rows.B == 1 or G * H * layer.output_size * dtype.itemsize > _CACHED
    forward = dense and not keep and has_operator(cell) and not layer.proj_size
    if forward and (alone or rows.T < _FORWARD_STEPS):
        return None
    if alone:
        return Plan(steps, MATRIX, 1)
    return Plan(steps, ROWS, 1 if rows.B * G * H**2 < THREAD_WORK else threads)


def steps_of(cell: Cell) -> int:
    """K, the steps of a chunk of a cell."""
    return max(1, min(_STEPS, _PRODUCTS // len(cell.gates)))


def _up(size: int, to: int) -> int:
    return -(-size // to) * to

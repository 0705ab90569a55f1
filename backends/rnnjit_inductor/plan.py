"""What is compiled for a call and what is not, in one place.

Speed-up over eager, forward / forward+backward, by CPU time on one thread of an AMD EPYC (torch
2.13, float32), by form of the product: in chunks of 8 steps (tanh) or 5 (GRU) with tiles of four
rows or with torch's matrix product, and step by step with nothing compiled:

    T, B, I, H             tiles         matrix        steps
    tanh
    100, 1, 64, 64         0.72 / 1.71   0.93 / 2.09   0.54 / 1.01
    100, 1, 128, 256       0.70 / 1.57   0.95 / 2.13   0.70 / 1.36
    100, 1, 512, 512       0.72 / 1.60   0.99 / 2.11   0.83 / 1.75
    100, 2, 64, 64         0.87 / 2.01   1.04 / 2.32
    32, 5, 64, 64          0.68 / 1.19   0.83 / 1.40
    100, 3, 128, 256       1.36 / 2.07   1.06 / 1.78
    100, 4, 512, 512       1.53 / 2.50   1.06 / 1.67
    100, 8, 128, 256       1.34 / 1.67   1.05 / 1.38   0.86 / 1.16
    28, 64, 28, 128        1.20 / 1.05   1.09 / 0.99   0.93 / 0.91
    100, 32, 128, 256      1.33 / 1.23   1.16 / 1.12   1.04 / 1.04
    20, 128, 1024, 1024    1.12 / 1.07   1.05 / 1.07   1.05 / 1.03
    GRU
    100, 1, 64, 64         0.72 / 1.90   1.02 / 2.59   0.29 / 0.98
    100, 1, 512, 512       0.76 / 1.76   1.01 / 2.07   0.75 / 1.60
    100, 8, 128, 256       1.49 / 1.66   1.05 / 1.29   0.77 / 1.02
    28, 64, 28, 128        1.17 / 1.04   0.95 / 0.95   0.78 / 0.90
    100, 32, 128, 256      1.37 / 1.29   1.02 / 1.05   0.90 / 0.99
    20, 128, 1024, 1024    1.30 / 1.11   0.99 / 1.00   0.98 / 0.99

So torch's product serves one row and small products, and tiles serve the others; forward, the
former are left to torch's own operator. Where W_hh exceeds the caches of a core, torch's product
serves as well: on an Intel server tiles took twice as long as eager for the last shape. On other
devices torch's product is used, which has not been measured there.

Packed, torch's operator is as fast as a forward pass of chunks, which copy rows, and in training as
fast as those of a few steps (see `InductorBackend.defers`).

Dense LSTM layers in float32 are one primitive of oneDNN in eager, as are packed ones of a single
sequence; it is 1.4 to 10 times as fast as any of these. So torch's operator runs them in both
passes. Cells that torch has no operator for would take several of torch's operators a step, so they
are compiled wherever possible. A cell without a recurrent product has no use for tiles.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from rnnjit import LayerSpec, Rows
from rnnjit.ir import CellSpec
from rnnjit.reference import has_operator
from rnnjit.single_step import has_primitive

#: Calls of fewer steps compile nothing.
_FEWEST = 16
#: Products in a chunk, G for each step, and its steps: how long a chunk compiles grows with both.
_PRODUCTS, _STEPS = 16, 8
#: Columns of a panel: a vector register of AVX-512 float32, and a multiple of every narrower one.
LANES = 16
#: From this many multiply-adds per step on, several threads share a chunk. They synchronise twice a
#: step; this is an estimate of the time that takes, not measured.
THREAD_WORK = 2**18
#: Multiply-adds of a gate's product in a step from which on tiles are faster than torch's product,
#: which does not copy the weights.
_TILED = 2**16
#: Bytes of W_hh up to which a tile is faster than torch's product. A tile reads all of W_hh for
#: every four rows, which is slow where a core's cache does not hold it.
_CACHED = 2 << 20
#: Bytes of W_hh times B up to which tiles serve cells that torch has no operator for. A leaky rate
#: cell, forward / forward+backward over a loop of torch's operators, tiles and torch's product:
#: 1.06 / 1.02 and 1.25 / 1.05 at (70, 128, 16, 512), 0.82 / 0.61 and 1.35 / 0.87 at (1000, 100, 10,
#: 500); peephole LSTM 1.76 / 1.52 and 1.31 / 1.30 at (100, 32, 128, 256). On a busy machine.
_REREAD = 64 << 20
#: From this many steps on, compiled dense forward passes alone, and small ones in training, are
#: faster than torch's operator.
_SHORT = 32


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
    if (dense or rows.B == 1) and has_primitive(layer, dtype):
        return None
    size = G * H * layer.output_size * dtype.itemsize
    large = size > _CACHED or (not has_operator(layer) and rows.B * size > _REREAD)
    tiled = cell.has_product and rows.B > 1 and rows.B * H**2 >= _TILED and not large
    few = rows.T < _SHORT
    if has_operator(layer) and not keep and (few or not tiled or not dense):
        return None
    if has_operator(layer) and dense and few and rows.B * H**2 < _TILED:
        return None
    if not tiled:
        return Plan(steps, MATRIX, 1)
    return Plan(steps, ROWS, 1 if rows.B * G * H**2 < THREAD_WORK else threads)


def steps_of(cell: CellSpec) -> int:
    """K, the steps of a chunk of a cell."""
    return max(1, min(_STEPS, _PRODUCTS // len(cell.gates)))


def _up(size: int, to: int) -> int:
    return -(-size // to) * to

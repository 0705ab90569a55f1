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

K=1 compiles nothing: the forward pass is torch's own operator, the backward pass that of `steps`.
The plan is therefore R=4 for two sequences and more, U=4 for one, and K=16: 32 steps gain little
and leave more steps uncompiled. On a CPU, torch's own matrix product is no faster within a chunk
than outside of one (2.62 ms against 2.53 ms for the steps of the fourth shape). It is used on other
devices, where this has not been measured.

Cells that torch has no operator for have not been measured either. Each of their steps would take
several of torch's operators, so they are compiled wherever possible.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from rnnjit import LayerSpec, Rows
from rnnjit.reference import has_operator

#: K, the steps of a compiled chunk.
STEPS = 16
#: Columns of a panel: a vector register of AVX-512 float32, and a multiple of every narrower one.
LANES = 16
#: From this many multiply-adds per step on, several threads share a chunk. They synchronise twice a
#: step; this is an estimate of the time that takes, not measured.
THREAD_WORK = 2**18
#: From this many steps on, and hidden features if there is one sequence, a compiled dense forward
#: pass alone is faster than torch's own operator. Measured on two threads: 0.98 times as fast as
#: eager for (28, 64, 28, 128), 0.95 for (100, 1, 64, 64), 1.09 for (100, 1, 128, 256).
_FORWARD_STEPS, _FORWARD_FEATURES = 32, 128


class Tile(NamedTuple):
    """The register tile of a compiled product; one of R and U is 1.

    Attributes:
        rows: R, rows that are multiplied at once.
        columns: U, panels that are multiplied at once.
        lanes: L, columns of a panel.
    """

    rows: int
    columns: int
    lanes: int = LANES

    def padded(self, features: int) -> int:
        """`features` rounded up to a multiple of U panels."""
        return _up(features, self.columns * self.lanes)

    def padded_rows(self, batch: int) -> int:
        """`batch` rounded up to a multiple of R."""
        return _up(batch, self.rows)


#: For two sequences and more: every vector of weights that is read serves four rows.
ROWS = Tile(4, 1)
#: For one sequence: four independent sums, which hide the latency of a multiply-add.
ONE_ROW = Tile(1, 4)
#: No tile: torch's own matrix product, which has its own tiles.
MATRIX = Tile(1, 1, 1)


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
    if rows.T < STEPS or not rows.N:
        return None
    if (
        len(layer.cell.states) > 1
        or len(layer.cell.accumulators) > len(layer.cell.gates)
        or layer.proj_size
    ):
        return None
    if device != "cpu":
        return Plan(STEPS, MATRIX, 1)
    if dtype not in (torch.float32, torch.float64):
        return None
    small = rows.T < _FORWARD_STEPS or (rows.B == 1 and layer.hidden_size < _FORWARD_FEATURES)
    if small and not keep and rows.batch_sizes is None and has_operator(layer.cell):
        return None
    work = rows.B * len(layer.cell.gates) * layer.hidden_size**2
    return Plan(STEPS, ONE_ROW if rows.B == 1 else ROWS, 1 if work < THREAD_WORK else threads)


def _up(size: int, to: int) -> int:
    return -(-size // to) * to

"""How a call is cut: what is compiled for it and what is not, in one place.

(measured figures: to come)
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from rnnjit import LayerSpec, Rows

#: K, the steps of a compiled chunk.
STEPS = 16
#: Columns of a panel: a vector register of AVX-512 float32, and a multiple of every narrower one.
LANES = 16
#: Multiply-adds of a step from which on several threads share a chunk.
THREAD_WORK = 2**18


class Tile(NamedTuple):
    """How a compiled product is held in registers; one of R and U is 1.

    Attributes:
        rows: R, rows that are multiplied at once.
        columns: U, panels that are multiplied at once.
        lanes: L, columns of a panel.
    """

    rows: int
    columns: int
    lanes: int = LANES

    def padded(self, features: int) -> int:
        """The next number of features that is whole panels, shared evenly by U."""
        return _up(features, self.columns * self.lanes)

    def padded_rows(self, batch: int) -> int:
        """The next number of rows that R divides."""
        return _up(batch, self.rows)


ROWS = Tile(4, 1)
ONE_ROW = Tile(1, 4)
#: No tile but torch's own matrix product, which knows tiles of its own.
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
    layer: LayerSpec, rows: Rows, dtype: torch.dtype, device: str, threads: int
) -> Plan | None:
    """What is compiled for a call, or None where steps of torch's own operators are quicker.

    Args:
        layer: what the layer is.
        rows: how its rows are laid over time.
        dtype: of its tensors.
        device: type of the device.
        threads: the most that may be used.
    """
    if rows.T < STEPS or not rows.N:
        return None
    if device != "cpu":
        return Plan(STEPS, MATRIX, 1)
    if dtype not in (torch.float32, torch.float64):
        return None
    work = rows.B * layer.hidden_size**2
    return Plan(STEPS, ONE_ROW if rows.B == 1 else ROWS, 1 if work < THREAD_WORK else threads)


def _up(size: int, to: int) -> int:
    return -(-size // to) * to

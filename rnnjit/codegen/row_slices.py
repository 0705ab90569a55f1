"""How threads divide the rows of a batch, in whole sequences: no row depends on another.

No division changes any bit of a result, so that it is about time alone.
"""

from __future__ import annotations

from typing import NamedTuple

from rnnjit.spec import LayerSpec, Rows

#: Multiply-adds below which a second thread costs more than it saves.
THREAD_WORK = 100_000
#: Hidden features from which on rows next to each other share no cache line worth mentioning.
STRIDED_FEATURES = 64


class RowSlices(NamedTuple):
    """A batch in slices, each of which runs the whole time loop on its own.

    Attributes:
        slices: how many there are.
        slice_rows: rows in each slice but the last.
        stride: distance of a slice's rows: 1, or `slices` where every slice has every such row.
    """

    slices: int
    slice_rows: int
    stride: int


def worth_threads(layer: LayerSpec, rows: Rows) -> bool:
    """Whether a layer has work enough for a second thread."""
    work = rows.N * layer.num_directions * layer.hidden_size
    return work * (layer.input_size + layer.hidden_size) >= THREAD_WORK


def one_slice(rows: Rows) -> RowSlices:
    """The batch undivided."""
    return RowSlices(1, max(rows.B, 1), 1)


def row_slices(layer: LayerSpec, rows: Rows, threads: int) -> RowSlices:
    """The batch divided between threads, each direction between its part of them."""
    batch = max(rows.B, 1)
    slice_rows = -(-batch // -(-threads // layer.num_directions))
    slices = -(-batch // slice_rows)
    # Sequences come in the order of their lengths: dealt out in turn, every step is divided evenly.
    packed = rows.T * batch > rows.N
    stride = slices if packed and layer.hidden_size >= STRIDED_FEATURES else 1
    return RowSlices(slices, slice_rows, stride)

"""How threads divide a batch: by sequences, which are independent of each other.

The division affects only the time: results are bit-identical for every division.
"""

from __future__ import annotations

from typing import NamedTuple

from rnnjit.spec import LayerSpec, Rows

#: Multiply-adds below which a second thread costs more than it saves.
THREAD_WORK = 100_000
#: Hidden features from which on false sharing between adjacent rows is negligible.
STRIDED_FEATURES = 64


class RowSlices(NamedTuple):
    """A batch divided into slices; each slice runs the whole time loop independently.

    Attributes:
        slices: the number of slices.
        slice_rows: sequences in each slice except the last.
        stride: distance between the sequences of a slice: 1 for adjacent ones, or `slices`.
    """

    slices: int
    slice_rows: int
    stride: int


def worth_threads(layer: LayerSpec, rows: Rows) -> bool:
    """Whether a layer has enough work for a second thread."""
    work = rows.N * layer.num_directions * layer.hidden_size
    return work * (layer.input_size + layer.hidden_size) >= THREAD_WORK


def one_slice(rows: Rows) -> RowSlices:
    """The batch undivided."""
    return RowSlices(1, max(rows.B, 1), 1)


def row_slices(layer: LayerSpec, rows: Rows, threads: int) -> RowSlices:
    """Divide the batch between threads; each direction gets an equal part of the threads."""
    batch = max(rows.B, 1)
    slice_rows = -(-batch // -(-threads // layer.num_directions))
    slices = -(-batch // slice_rows)
    # Packed sequences are sorted by length: a stride divides every step evenly.
    packed = rows.T * batch > rows.N
    stride = slices if packed and layer.hidden_size >= STRIDED_FEATURES else 1
    return RowSlices(slices, slice_rows, stride)

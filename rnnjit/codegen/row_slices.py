"""How threads divide a batch: by sequences, which are independent of each other.

The division affects only the time: results are bit-identical for every division.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import NamedTuple

from rnnjit.codegen.cell_layout import operand_size
from rnnjit.runtime.late_threads import LateThreads, late_threads
from rnnjit.spec import LayerSpec, Rows

#: Multiply-adds that other threads must take off the caller to be worth waking and waiting for.
#: Waking threads that sleep, and the wait for them at the end, take some 20 to 50 us; in 40 of
#: these a thread of a processor with wide vectors does about so many. A slower one needs longer for
#: them, and so gains more where it uses a team, but uses one later than it might.
THREAD_WORK = 1_500_000
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


def multiply_adds(layer: LayerSpec, rows: Rows) -> int:
    """Those of a layer's forward pass."""
    wide = len(layer.cell.gates) * layer.hidden_size
    own = wide * layer.input_size + recurrent_work(layer)
    return rows.N * layer.num_directions * own


def recurrent_work(layer: LayerSpec) -> int:
    """Multiply-adds of a row's step in one direction, without its input projection.

    Without a recurrent product, the operations of the cell count instead of it.
    """
    cell, H = layer.cell, layer.hidden_size
    each = len(cell.gates) * layer.output_size if cell.has_product else len(cell.step.instructions)
    return H * each + H * layer.proj_size


def worth_threads(layer: LayerSpec, rows: Rows) -> bool:
    """Whether a layer has enough work for a second thread, which would do half of it at best."""
    return multiply_adds(layer, rows) >= 2 * THREAD_WORK


def worth_team(saved: float) -> bool:
    """Whether a team is worth it that takes so many multiply-adds off the calling thread."""
    return saved >= THREAD_WORK


def shared_in_backward(layer: LayerSpec, rows: Rows) -> int:
    """Multiply-adds of a backward pass that any number of threads share evenly.

    They are those of grad_x, dW_ih, dW_hh and dW_hr, which are sums over all rows.
    """
    wide = len(layer.cell.gates) * layer.hidden_size
    own = wide * (2 * layer.input_size + operand_size(layer))
    return rows.N * layer.num_directions * (own + layer.hidden_size * layer.proj_size)


def one_slice(rows: Rows) -> RowSlices:
    """The batch undivided."""
    return RowSlices(1, max(rows.B, 1), 1)


def alike(rows: Rows) -> Rows:
    """Packed rows for which the same plan is good: N rounded up, by an eighth at the most.

    Real batches seldom repeat a sum of lengths, but their plans must not be made anew each time.
    Dense rows are left as they are.
    """
    dense = rows.T * rows.B
    if dense <= rows.N:
        return rows
    step = 1 << max(rows.N.bit_length() - 4, 0)
    return rows._replace(N=min(-(-rows.N // step) * step, dense - 1))


def row_slices(layer: LayerSpec, rows: Rows, threads: int) -> RowSlices:
    """Divide the batch between threads; each direction gets an equal part of the threads."""
    batch = max(rows.B, 1)
    slice_rows = -(-batch // -(-threads // layer.num_directions))
    slices = -(-batch // slice_rows)
    # Packed sequences are sorted by length: a stride divides every step evenly.
    packed = rows.T * batch > rows.N
    stride = slices if packed and layer.hidden_size >= STRIDED_FEATURES else 1
    return RowSlices(slices, slice_rows, stride)


def late_threads_for(
    kernel: tuple[Hashable, ...], layer: LayerSpec, rows: Rows, threads: int, shared: int = 0
) -> LateThreads | None:
    """What is known of the calls of a kernel with such a layer and such rows.

    Args:
        kernel: what identifies the kernel.
        layer: the configuration of the layer.
        rows: how its rows are laid over time.
        threads: the size of the team.
        shared: multiply-adds beside those of a forward pass.

    Returns:
        None if the calls are planned for one thread.
    """
    if threads == 1:
        return None
    work = multiply_adds(layer, rows) + shared
    return late_threads((*kernel, layer, rows.B, threads), work)

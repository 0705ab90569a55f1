"""The `torch.library` operators for packed input, whose sizes are unknown while tracing.

They read the batch sizes when the graph runs. `rnnjit.execution.torch_ops` has the others.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.library import custom_op

from rnnjit.execution.batch_sizes import check_counts
from rnnjit.runtime.torch_private import unknown_size
from rnnjit.spec import integers


@custom_op("rnnjit::batch_sizes", mutates_args=())
def batch_sizes_op(sizes: Tensor, rows: int, batch: int) -> Tensor:
    """Check the values of the batch sizes of a PackedSequence, which are unknown while tracing.

    Args:
        sizes: int64 `[T]` on the CPU.
        rows: N, the number of rows of the packed data.
        batch: B, the number of sequences.

    Returns:
        A copy, since the backward pass trusts these numbers long after they were checked.

    Raises:
        RuntimeError: the sizes grow, are negative, or do not add up to N, or the first is not B.
    """
    counts = integers(sizes)
    check_counts(counts, rows)
    if sum(counts) != rows:
        raise RuntimeError(
            f"input.batch_sizes adds up to {sum(counts)} rows, but input.data has {rows}: in a "
            "traced graph input.data must have no further rows"
        )
    if counts[0] != batch:
        raise RuntimeError(
            f"input.batch_sizes begins with {counts[0]} sequences, but hx or input.sorted_indices "
            f"has {batch}"
        )
    return sizes.clone(memory_format=torch.contiguous_format)


@batch_sizes_op.register_fake
def _(sizes: Tensor, rows: int, batch: int) -> Tensor:
    return sizes.new_empty(sizes.shape)


@custom_op("rnnjit::zero_states", mutates_args=())
def zero_states_op(
    data: Tensor, sizes: Tensor, count: int, features: Sequence[int]
) -> list[Tensor]:
    """Make the states that a packed call starts from, where only the batch sizes say how many.

    Args:
        data: the packed data, whose dtype and device the states get.
        sizes: int64 `[T]` on the CPU; the first one is B.
        count: L*D.
        features: for each state its features.

    Returns:
        Each state `[L*D, B, features]`, zeros.

    Raises:
        RuntimeError: B is negative.
    """
    batch = int(sizes[0])
    return [data.new_zeros((count, batch, columns)) for columns in features]


@zero_states_op.register_fake
def _(data: Tensor, sizes: Tensor, count: int, features: Sequence[int]) -> list[Tensor]:
    batch = unknown_size()
    return [data.new_empty((count, batch, columns)) for columns in features]

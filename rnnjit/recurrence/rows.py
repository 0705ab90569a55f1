"""Index tensors for packed rows, on any device and without synchronising with it.

They follow from the batch sizes, which are on the host, and the sizes of all results are known from
the call, so that no value has to be read back from the device.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rnnjit.spec import Rows


def offsets(rows: Rows, device: torch.device) -> Tensor:
    """int64 `[T + 1]` on the device: the rows of step t are offsets[t] to offsets[t + 1]."""
    if rows.batch_sizes is None:
        return torch.arange(rows.T + 1, dtype=torch.int64, device=device) * rows.B
    # Summed on the CPU, where the sizes are, so that only one copy to the device is needed.
    starts = rows.batch_sizes.new_zeros(rows.T + 1)
    torch.cumsum(rows.batch_sizes, 0, out=starts[1:])
    return starts.to(device, non_blocking=True)


def states_before(
    rows: Rows, starts: Tensor | None, y: Tensor, h0: Tensor, direction: int
) -> Tensor:
    """The state before each row's step, `[N, H]`.

    Args:
        rows: how the rows are laid over time.
        starts: `offsets(rows, ...)`, or None for a dense batch.
        y: `[N, H]`, the states after each row's step, of one direction.
        h0: `[B, H]`, the state that each sequence starts from.
        direction: 0, or 1 if sequences run from their last step to their first.
    """
    if starts is None:
        last = rows.N - rows.B
        return torch.cat([h0, y[:last]] if direction == 0 else [y[rows.B :], h0])
    return torch.cat([h0, y]).index_select(0, indices_before(rows, starts, direction))


def indices_before(rows: Rows, starts: Tensor, direction: int) -> Tensor:
    """For each row, the index of its previous state: int64 `[N]`, into h0 followed by all rows.

    Args:
        rows: how the rows are laid over time.
        starts: `offsets(rows, ...)`.
        direction: as for `states_before`.
    """
    sizes = starts.diff()
    steps = torch.arange(rows.T, dtype=torch.int64, device=starts.device)
    step = torch.repeat_interleave(steps, sizes, output_size=rows.N)
    sequence = torch.arange(rows.N, dtype=torch.int64, device=starts.device) - starts[step]
    if direction == 0:
        linked = step > 0
        before = starts[(step - 1).clamp(min=0)]
    else:
        after = (step + 1).clamp(max=rows.T - 1)
        linked = (step + 1 < rows.T) & (sequence < sizes[after])
        before = starts[after]
    return torch.where(linked, rows.B + before + sequence, sequence)

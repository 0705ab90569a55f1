"""The layout of rows for compiled chunks, which handle neither packed rows nor odd sizes.

A walk goes over the steps of all sequences at once. Each sequence starts at its own beginning: its
first step, or its last step if the walk goes back in time. Step s of a walk has the rows of the
sequences that are longer than s, which come first in the batch. A chunk is K steps of a walk, all
with the number of rows of the first of them, rounded up. The rows of sequences that have ended, and
the columns after the H features, are padding: their values are meaningless, and nothing reads them.
So there are no masks, and every walk looks the same to the compiler.

The backward chunk goes through its memory from the last step to the first. So a dense batch that
needs no padding is not copied if a forward walk goes in the direction of time, or a backward walk
against it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from rnnjit import Rows
from rnnjit_inductor.plan import Plan


class Chunk(NamedTuple):
    """One chunk of a walk.

    Attributes:
        start: the first of its rows, which are K times `size`.
        size: rows of each of its steps.
    """

    start: int
    size: int


class DenseLayout:
    """The chunks of a dense batch; the steps after the last whole chunk belong to none.

    Args:
        rows: how the rows are divided into time steps.
        from_last: whether the walk goes from the last step to the first.
        descending: whether chunks go through their memory from the last step to the first.
        features: H.
        plan: what is compiled.

    Attributes:
        chunks: in the order of the walk.
        rest: the rows of the steps that belong to no chunk.
        rest_sizes: how many rows each of these steps has.
    """

    def __init__(
        self, rows: Rows, from_last: bool, descending: bool, features: int, plan: Plan
    ) -> None:
        count = rows.T // plan.steps
        size, columns = plan.tile.padded_rows(rows.B), plan.tile.padded(features)
        whole = count * plan.steps
        order = reversed(range(count)) if descending else range(count)
        self.chunks = [Chunk(c * plan.steps * size, size) for c in order]
        left = rows.T - whole
        self.rest = slice(0, left * rows.B) if from_last else slice(whole * rows.B, rows.N)
        self.rest_sizes = [rows.B] * left
        self._first = left * rows.B if from_last else 0
        self._shape, self._batch = (whole, size, columns), rows.B
        self._flip = from_last != descending
        self._as_it_lies = not self._flip and size == rows.B and columns == features

    def lay(self, rows: Tensor) -> Tensor:
        """Rows `[N, H]` as chunks take them, `[M, columns]`: a view if they are laid out so."""
        if self._as_it_lies:
            return self.room(rows)
        laid = rows.new_zeros(self._shape)
        block = self._block(rows)
        self._true(laid, rows).copy_(block.flip(0) if self._flip else block)
        return laid.flatten(0, 1)

    def room(self, rows: Tensor) -> Tensor:
        """Memory like that which `lay` gives, whose values are to be written."""
        if self._as_it_lies:
            return self._block(rows).flatten(0, 1)
        return rows.new_empty(self._shape).flatten(0, 1)

    def unlay(self, laid: Tensor, rows: Tensor) -> None:
        """Write what `lay` or `room` gave, filled in the meantime, to the rows."""
        if self._as_it_lies:
            return
        block = self._true(laid.view(self._shape), rows)
        self._block(rows).copy_(block.flip(0) if self._flip else block)

    def _true(self, laid: Tensor, rows: Tensor) -> Tensor:
        """The chunks without padding, `[steps, B, H]`."""
        return laid[:, : self._batch, : rows.shape[1]]

    def _block(self, rows: Tensor) -> Tensor:
        """The steps `[steps, B, H]` of all chunks."""
        own = rows[self._first : self._first + self._shape[0] * self._batch]
        return own.view(self._shape[0], self._batch, rows.shape[1])


class PackedLayout:
    """The chunks of a packed batch, which hold all of its rows; methods as in `DenseLayout`."""

    def __init__(
        self,
        rows: Rows,
        starts: Tensor,
        from_last: bool,
        descending: bool,
        features: int,
        plan: Plan,
    ) -> None:
        self.chunks = []
        total = 0
        for size in rows.sizes[:: plan.steps]:
            if size:
                self.chunks.append(Chunk(total, plan.tile.padded_rows(size)))
                total += plan.steps * self.chunks[-1].size
        self._shape = (total, plan.tile.padded(features))
        self.starts = starts
        self._places = _places(rows, starts, self.chunks, from_last, descending, plan.steps)

    def lay(self, rows: Tensor) -> Tensor:
        """Rows `[N, H]` as chunks take them, `[M, columns]`."""
        laid = rows.new_zeros(self._shape)
        laid[:, : rows.shape[1]].index_copy_(0, self._places, rows)
        return laid

    def room(self, rows: Tensor) -> Tensor:
        """Memory like that which `lay` gives, whose values are to be written."""
        return rows.new_empty(self._shape)

    def unlay(self, laid: Tensor, rows: Tensor) -> None:
        """Write what `lay` or `room` gave, filled in the meantime, to the rows."""
        rows.copy_(laid.index_select(0, self._places)[:, : rows.shape[1]])


Layout = DenseLayout | PackedLayout


def last_rows(rows: Rows, starts: Tensor) -> Tensor:
    """int64 `[B]`: the last row of each sequence of a packed batch."""
    lengths = _lengths(rows, starts)
    sequences = torch.arange(rows.B, dtype=torch.int64, device=starts.device)
    return starts[(lengths - 1).clamp(min=0)] + sequences


def _lengths(rows: Rows, starts: Tensor) -> Tensor:
    """int64 `[B]`: how many steps each sequence has."""
    sequences = torch.arange(rows.B, dtype=torch.int64, device=starts.device)
    return (starts.diff()[:, None] > sequences).sum(0)


def _places(
    rows: Rows, starts: Tensor, chunks: list[Chunk], from_last: bool, descending: bool, steps: int
) -> Tensor:
    """int64 `[N]`: the place of each row in the chunks' memory."""
    device = starts.device
    times = torch.arange(rows.T, dtype=torch.int64, device=device)
    time = torch.repeat_interleave(times, starts.diff(), output_size=rows.N)
    sequence = torch.arange(rows.N, dtype=torch.int64, device=device) - starts[time]
    step = _lengths(rows, starts)[sequence] - 1 - time if from_last else time
    begins = torch.tensor([chunk.start for chunk in chunks], dtype=torch.int64, device=device)
    sizes = torch.tensor([chunk.size for chunk in chunks], dtype=torch.int64, device=device)
    chunk, within = step // steps, step % steps
    if descending:
        within = steps - 1 - within
    return begins[chunk] + within * sizes[chunk] + sequence

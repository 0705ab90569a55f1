"""Divides a layer into directions, and the steps of a direction into segments."""

from __future__ import annotations

from collections.abc import Sequence
from math import isqrt
from typing import NamedTuple, TypeVar

from torch import Tensor

from rnnjit.backend import States
from rnnjit.spec import LayerSpec, Rows

ItemT = TypeVar("ItemT")

#: The fewest rows of a segment. A kernel lays out all weights anew for each, and reads them: the
#: work of some 20 rows.
_ROWS = 512


class Segment(NamedTuple):
    """Consecutive steps of a direction, in the order in which it computes them.

    Attributes:
        rows: how the segment's rows are laid over time.
        first: the number of rows in the steps before it.
        before: how many of these are in the last of these steps.
    """

    rows: Rows
    first: int = 0
    before: int = 0


def segments(layer: LayerSpec, rows: Rows) -> list[Segment]:
    """Cut the steps of a layer's directions into some sqrt(T) segments of about as many rows each.

    Two directions of a packed batch stay whole: only rows of a dense batch can be laid out anew in
    the order in which the second direction computes them. So do two directions whose row inputs
    stand in columns of x beside each other.

    Args:
        layer: the configuration of the layer.
        rows: how its rows are laid over time.
    """
    count = min(isqrt(rows.T), rows.N // _ROWS)
    shared = rows.batch_sizes is not None or bool(layer.cell.row_inputs)
    if count < 2 or (shared and layer.num_directions > 1):
        return [Segment(rows)]
    found: list[Segment] = []
    sizes, start, first, held = rows.sizes, 0, 0, 0
    for stop, size in enumerate(sizes, 1):
        held += size
        if held * count < rows.N and stop < rows.T:
            continue
        table = None if rows.batch_sizes is None else rows.batch_sizes[start:stop]
        own = Rows(stop - start, sizes[start], held, table)
        found.append(Segment(own, first, sizes[start - 1] if start else 0))
        start, first, held = stop, first + held, 0
    return found


class Direction:
    """One direction of a layer, as a layer of its own, over the rows of the whole.

    Args:
        whole: the configuration of the layer.
        rows: how its rows are laid over time; dense if the layer has two directions.
        index: 0, or 1 for the direction that runs from the last step to the first.

    Attributes:
        index: as given.
        layer: the configuration of the direction.
    """

    def __init__(self, whole: LayerSpec, rows: Rows, index: int) -> None:
        sizes = whole.input_size, whole.hidden_size
        self.layer = LayerSpec(whole.cell, *sizes, 1, whole.bias, whole.proj_size)
        self.index, self._count, self._N = index, whole.num_directions, rows.N

    def weights(self, given: Sequence[ItemT]) -> tuple[ItemT, ...]:
        """Its own of what there is for each weight of the layer."""
        count = self.layer.weights_per_direction
        return tuple(given[self.index * count : (self.index + 1) * count])

    def states(self, given: States) -> States:
        """`state` of each."""
        return tuple(map(self.state, given))

    def state(self, given: Tensor) -> Tensor:
        """Its own part `[1, B, P or H]` of a state `[D, B, P or H]`, as a view."""
        return given[self.index : self.index + 1]

    def columns(self, rows: Tensor) -> Tensor:
        """Its own columns `[N, F]` of rows `[N, D*F]`, as a view."""
        return rows.chunk(self._count, 1)[self.index] if self._count > 1 else rows

    def take(self, rows: Tensor, segment: Segment) -> Tensor:
        """The rows `[n, F]` of a segment, of rows `[N, F]`."""
        return self._turned(rows[self._place(segment.first, segment.rows.N)], segment)

    def put(self, rows: Tensor, segment: Segment, values: Tensor) -> None:
        """Write the rows `[n, F]` of a segment to rows `[N, F]`."""
        rows[self._place(segment.first, segment.rows.N)] = self._turned(values, segment)

    def add(self, rows: Tensor, segment: Segment, values: Tensor) -> None:
        """Add the rows `[n, F]` of a segment to rows `[N, F]`."""
        rows[self._place(segment.first, segment.rows.N)].add_(self._turned(values, segment))

    def before(self, rows: Tensor, segment: Segment) -> Tensor:
        """What rows `[N, F]` hold in the step before a segment for its sequences: `[1, b, F]`."""
        place = self._place(segment.first - segment.before, segment.rows.B)
        return rows[place].unsqueeze(0).contiguous()

    def _place(self, first: int, count: int) -> slice:
        """Where `count` rows are of which the direction computes `first` others before."""
        start = self._N - first - count if self.index else first
        return slice(start, start + count)

    def _turned(self, rows: Tensor, segment: Segment) -> Tensor:
        """Rows of a segment from the layer's order of steps to the direction's, or back."""
        if not self.index:
            return rows
        return rows.reshape(segment.rows.T, segment.rows.B, -1).flip(0).reshape(rows.shape)

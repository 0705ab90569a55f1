"""Tensors that depend on a state, as tensors of marks.

A traced tensor whose last dimension has k*H columns consists of blocks of H columns, and each block
is an expression. A mark tells, for one element, which expression it is, and of which row and which
hidden unit. What moves data moves marks: torch's own operator does it, whatever it is, and the
result is a traced tensor if its marks still lie row by row and unit by unit.

    mark = (expression * B + row) * H + unit
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """How the marks of a tensor lie.

    Attributes:
        shape: of the tensor.
        batch: the dimension of the rows.
        leading: the sizes of all other dimensions but the last.
        blocks: k, the number of blocks in the last dimension.
    """

    shape: tuple[int, ...]
    batch: int
    leading: tuple[int, ...]
    blocks: int

    @property
    def places(self) -> list[tuple[tuple[int, ...], int]]:
        """For each block, the index in the leading dimensions, and its number in the last."""
        return list(product(product(*map(range, self.leading)), range(self.blocks)))


class Marks:
    """Writes and reads marks.

    Args:
        B: rows.
        H: hidden units.
    """

    def __init__(self, B: int, H: int) -> None:
        self.B, self.H = B, H

    def layout(self, shape: Sequence[int], batch: int) -> Layout | None:
        """The layout of a tensor of this shape whose rows lie in dimension `batch`, or None."""
        last = len(shape) - 1
        if batch >= last or shape[batch] != self.B or shape[-1] % self.H or not shape[-1]:
            return None
        leading = tuple(size for d, size in enumerate(shape[:-1]) if d != batch)
        return Layout(tuple(shape), batch, leading, shape[-1] // self.H)

    def write(self, layout: Layout, expressions: Sequence[int]) -> Tensor:
        """The marks of a tensor with these expressions, one for each of its places."""
        cpu = torch.device("cpu")
        numbers = torch.tensor(expressions, dtype=torch.int64, device=cpu)
        rows = torch.arange(self.B, dtype=torch.int64, device=cpu)
        units = torch.arange(self.H, dtype=torch.int64, device=cpu)
        blocks = numbers.view(*layout.leading, 1, layout.blocks, 1)
        marks = (blocks * self.B + rows.view(-1, 1, 1)) * self.H + units
        marks = marks.flatten(-2)
        return marks.movedim(-2, layout.batch)

    def read(self, marks: Tensor) -> tuple[Layout, list[int]] | None:
        """The layout and the expressions; None if the marks do not lie row by row, unit by unit."""
        for batch in range(marks.dim() - 1):
            layout = self.layout(tuple(marks.shape), batch)
            if layout is None:
                continue
            first = marks.select(batch, 0)[..., :: self.H]
            found = torch.div(first, self.B * self.H, rounding_mode="floor").flatten().tolist()
            if torch.equal(self.write(layout, found), marks):
                return layout, found
        return None

    def mixes_rows(self, marks: Tensor) -> bool:
        """Whether the marks do not lie row by row."""
        rows = torch.div(marks, self.H, rounding_mode="floor") % self.B
        for batch in range(marks.dim()):
            own = torch.arange(marks.shape[batch], dtype=torch.int64, device=marks.device)
            shape = [1] * marks.dim()
            shape[batch] = -1
            if marks.shape[batch] == self.B and bool((rows == own.view(shape)).all()):
                return False
        return True

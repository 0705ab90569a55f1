"""What tracing a cell gives: a `CellSpec`, and the graphs of the tensors that it takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rnnjit.cells.graph import Graph
from rnnjit.ir import CellSpec


@dataclass(frozen=True, eq=False)
class Draw:
    """A random draw of a step.

    Attributes:
        graph: the operator that draws.
    """

    graph: Graph

    def __call__(self, rows: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Draw for one step, as the step itself does with this batch.

        Args:
            rows: B, the rows of the step.
            dtype: the dtype of the step; a draw that the user gave a dtype of its own keeps it.
            device: where to draw; its default generator is used, unless the user named one.

        Returns:
            `[rows, ...]`.
        """
        with torch.no_grad():
            (found,) = self.graph(nn.Module(), torch.device(device), rows)
        return found


@dataclass(frozen=True, eq=False)
class TracedCell:
    """One step of a cell, partitioned by what its parts depend on.

    It holds no tensor of the cell: its methods take those that the cell has when they are called.
    It is that of the training mode, dtype, device type and plain attributes that the cell had.

    Attributes:
        spec: the cell as it was written; backends compute its `normal_form`.
        input_size: I if a backend multiplies x by w_ih; 0 if all that comes from x is row inputs.
        bias: whether `weights` has biases.
        draws: the random draws of a step, in the order of the step.
    """

    spec: CellSpec
    input_size: int
    bias: bool
    draws: tuple[Draw, ...]
    _weights: Graph
    _row_inputs: Graph
    _device: torch.device

    def weights(self, cell: nn.Module) -> tuple[Tensor, ...]:
        """The weights of a direction, in the order of `LayerSpec.weight_shapes`.

        They are computed from the cell's parameters and buffers by torch's operators, so that
        autograd leads from one to the other. Where nothing is computed, it is the very parameter.
        """
        first = next(cell.parameters(), None)
        device = self._device if first is None else first.device
        return self._weights(cell, device, 1)

    def row_inputs(self, cell: nn.Module, x: Tensor, draws: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The row inputs of a direction.

        Args:
            cell: the cell.
            x: the input of all rows, `[N, I]`.
            draws: of each of `draws` those of all rows, `[N, ...]`.

        Returns:
            A tensor `[N, H]` for each of `spec.row_inputs`, which autograd has recorded.
        """
        return self._row_inputs(cell, x.device, x.shape[0], x, draws)

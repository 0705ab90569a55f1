"""Recurrences of any cell with one launch for all steps."""

from __future__ import annotations

import torch
from torch import Tensor

from rnnjit.recurrence import Backward, Forward, Recurrence
from rnnjit_cuda.kernels import counter_elements, exchange_elements, padded
from rnnjit_cuda.launch import Argument, Launcher, Shape
from rnnjit_cuda.plan import Plan


class CellPersistent(Recurrence):
    """Recurrences in a single kernel, of any family but "step", without a projection.

    Args:
        plan: what to launch.
        launcher: starts kernels.
    """

    def __init__(self, plan: Plan, launcher: Launcher) -> None:
        self._plan, self._launcher = plan, launcher

    def forward(self, call: Forward) -> None:
        """One launch of a forward kernel."""
        keep = bool(call.saved or call.states)
        # Of what it is not to write or read, any tensor serves as the argument.
        cell = call.layer.cell
        kept = [*call.states, *call.saved]
        if not keep:
            kept = [call.y] * (len(cell.states) - 1 + len(cell.saved))
        b_hh = call.b_hh or [call.z]
        tensors = [call.z, call.y, *kept, *call.hx, *call.h_n]
        tensors += [*self._weights(call.w_hh, transposed=False), b_hh[0], b_hh[-1]]
        tensors += _of_the_cell(call)
        features = call.layer.features
        self._launch(call, tensors, [int(keep), int(bool(call.b_hh)), features])

    def backward(self, call: Backward) -> None:
        """One launch of a backward kernel."""
        grad_y = call.y if call.grad_y is None else call.grad_y
        has_grads = sum((grad is not None) << s for s, grad in enumerate(call.grad_h_n))
        pairs = zip(call.grad_h_n, call.grad_hx, strict=True)
        given = [other if grad is None else grad for grad, other in pairs]
        tensors = [call.dz, call.y, *call.states, *call.saved, *call.hx, *call.grad_hx]
        tensors += [grad_y, *self._weights(call.w_hh, transposed=True), *given]
        if self._plan.key.recorded:
            zeros = torch.zeros_like(call.states[0])
            tensors += [zeros if grad is None else grad for grad in call.grad_states]
        tensors += [*_of_the_cell(call), *gradients_of_the_cell(call)]
        flags = [int(call.grad_y is not None), has_grads, call.layer.features]
        self._launch(call, tensors, [*flags, *strides_of_gradients(call)])

    def _weights(self, w_hh: list[Tensor], *, transposed: bool) -> list[Tensor]:
        """The weights of both directions; for "stream", padded as its kernels read them."""
        part = self._plan.part
        if self._plan.key.family == "stream" and part is not None:
            columns = self._plan.grid[0] * part.columns
            w_hh = [_panels(w, columns, transposed=transposed) for w in w_hh]
        return [w_hh[0], w_hh[-1]]

    def _launch(self, call: Forward | Backward, tensors: list[Tensor], flags: list[int]) -> None:
        plan, rows, H = self._plan, call.rows, call.layer.hidden_size
        if not rows.B:
            return
        sizes: list[Argument] = [rows.T, rows.B, H]
        workspace: list[Argument] = []
        if plan.part is not None:
            real = torch.float64 if call.y.dtype is torch.float64 else torch.float32
            where = call.y.device
            count = exchange_elements(plan.key, plan.grid, H, plan.part)
            counters = counter_elements(plan.grid)
            workspace = [
                torch.empty(count, dtype=real, device=where),
                torch.zeros(counters, dtype=torch.int64, device=where),
            ]
            sizes += [plan.part.columns, plan.part.splits, plan.part.slab]
        starts, packed = (call.y, 0) if call.starts is None else (call.starts, 1)
        shape = Shape(plan.grid, plan.threads, plan.shared, cooperative=bool(workspace))
        arguments = [*tensors, *workspace, starts, *sizes, packed, *flags]
        self._launcher(plan.key, shape, arguments)


def gradients_of_the_cell(call: Backward) -> list[Tensor]:
    """The tensors for the gradients of parameters and row inputs, any tensor where none is due."""
    cell, found = call.layer.cell, []
    if cell.parameters:
        found.append(call.dz if call.grad_parameters is None else call.grad_parameters)
    if cell.row_inputs:
        found.append(call.dz if call.grad_row_inputs is None else call.grad_row_inputs)
    return found


def strides_of_gradients(call: Backward) -> list[int]:
    """`ld_dp` and `ld_dr` of the kernels: 0 for gradients that are not written."""
    layer = call.layer
    columns = layer.num_directions * len(layer.cell.parameters) * layer.hidden_size
    return [
        0 if call.grad_parameters is None else columns,
        0 if call.grad_row_inputs is None else layer.features,
    ]


def _of_the_cell(call: Forward | Backward) -> list[Tensor]:
    """The parameters of both directions and the row inputs."""
    found = [*call.parameters[0], *call.parameters[-1]]
    return found if call.row_inputs is None else [*found, call.row_inputs]


def _panels(w_hh: Tensor, columns: int, *, transposed: bool) -> Tensor:
    """W_hh `[G*H, H]`, each gate padded with zeros to `[columns, padded(H)]`."""
    H = w_hh.shape[1]
    gates = w_hh.view(-1, H, H)
    panels = w_hh.new_zeros(gates.shape[0], columns, padded(H))
    panels[:, :H, :H] = gates.transpose(1, 2) if transposed else gates
    return panels

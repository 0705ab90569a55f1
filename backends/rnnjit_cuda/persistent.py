"""Recurrences with one launch for all steps."""

from __future__ import annotations

import torch
from torch import Tensor

from rnnjit.recurrence import Backward, Forward, Recurrence
from rnnjit_cuda.kernels import Share, counter_elements, exchange_elements, padded
from rnnjit_cuda.launch import Argument, Launcher, Shape
from rnnjit_cuda.plan import Plan


class Persistent(Recurrence):
    """Recurrences in a single kernel, of any family but "step".

    Args:
        plan: what to launch.
        launcher: starts kernels.
    """

    def __init__(self, plan: Plan, launcher: Launcher) -> None:
        self._plan, self._launcher = plan, launcher

    def forward(self, call: Forward) -> None:
        """One launch of a forward kernel."""
        weights = self._weights(call.w_hh)
        tensors: list[Argument] = [call.y, *weights, call.hx[0], call.h_n[0]]
        self._launch(call, call.y, tensors, [])

    def backward(self, call: Backward) -> None:
        """One launch of a backward kernel."""
        weights = self._weights([w_hh.t() for w_hh in call.w_hh] if self._streams else call.w_hh)
        # Without a gradient the kernel reads none, and any tensor serves as the argument.
        grad_y = call.y if call.grad_y is None else call.grad_y
        (grad_h0,), (given,) = call.grad_hx, call.grad_h_n
        grad_h_n = grad_h0 if given is None else given
        tensors: list[Argument] = [call.dz, grad_y, call.y, *weights, grad_h_n, grad_h0]
        flags = [int(call.grad_y is not None), int(given is not None)]
        self._launch(call, call.y, tensors, flags)

    @property
    def _streams(self) -> bool:
        return self._plan.key.family == "stream"

    def _weights(self, w_hh: list[Tensor]) -> list[Tensor]:
        """The weights of both directions; for "stream", padded as its kernels read them."""
        part = self._plan.part
        if self._streams and part is not None:
            w_hh = [_panel(w, self._plan.grid[0] * part.columns) for w in w_hh]
        return [w_hh[0], w_hh[-1]]

    def _launch(
        self, call: Forward | Backward, like: Tensor, tensors: list[Argument], flags: list[int]
    ) -> None:
        plan, rows = self._plan, call.rows
        if not rows.B:
            return
        sizes: list[Argument] = [rows.T, rows.B, call.layer.hidden_size]
        workspace: list[Argument] = []
        if plan.part is not None:
            workspace = list(self._workspace(plan.part, call.layer.hidden_size, like))
            sizes += [plan.part.columns, plan.part.splits, plan.part.slab]
        # Without offsets the kernel reads none, and any tensor serves as the argument.
        starts, packed = (like, 0) if call.starts is None else (call.starts, 1)
        shape = Shape(plan.grid, plan.threads, plan.shared, cooperative=bool(workspace))
        self._launcher(plan.key, shape, [*tensors, *workspace, starts, *sizes, packed, *flags])

    def _workspace(self, part: Share, H: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """The buffer that states are exchanged through, and the grid barriers' counters."""
        grid = self._plan.grid
        real = torch.float64 if like.dtype is torch.float64 else torch.float32
        count = exchange_elements(self._plan.key, grid, H, part)
        exchange = torch.empty(count, dtype=real, device=like.device)
        counters = torch.zeros(counter_elements(grid), dtype=torch.int64, device=like.device)
        return exchange, counters


def _panel(w: Tensor, columns: int) -> Tensor:
    """`w` `[H, H]` padded with zeros to `[columns, padded(H)]`."""
    H = w.shape[0]
    panel = w.new_zeros(columns, padded(H))
    panel[:H, :H] = w
    return panel

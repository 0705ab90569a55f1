"""The plans of one launch for all steps."""

from __future__ import annotations

import torch
from torch import Tensor

from rnnjit.recurrence import Backward, Forward, Recurrence
from rnnjit_cuda.kernels import counter_elements, exchange_elements
from rnnjit_cuda.launch import Argument, Launcher, Shape
from rnnjit_cuda.plan import Cut


class Persistent(Recurrence):
    """Recurrences in a single kernel: "block", or "grid", whose blocks meet through memory.

    Args:
        cut: what to launch.
        launcher: starts kernels.
    """

    def __init__(self, cut: Cut, launcher: Launcher) -> None:
        self._cut, self._launcher = cut, launcher

    def forward(self, call: Forward) -> None:
        """One launch of a forward kernel."""
        weights = [call.w_hh[0], call.w_hh[-1]]
        tensors: list[Argument] = [call.y, *weights, call.h0, call.h_n]
        self._launch(call, call.y, tensors, [])

    def backward(self, call: Backward) -> None:
        """One launch of a backward kernel."""
        weights = [call.w_hh[0], call.w_hh[-1]]
        # Where there is no gradient the kernel reads none, and takes any tensor.
        grad_y = call.y if call.grad_y is None else call.grad_y
        grad_h_n = call.grad_h0 if call.grad_h_n is None else call.grad_h_n
        tensors: list[Argument] = [call.dz, grad_y, call.y, *weights, grad_h_n, call.grad_h0]
        flags = [int(call.grad_y is not None), int(call.grad_h_n is not None)]
        self._launch(call, call.y, tensors, flags)

    def _launch(
        self, call: Forward | Backward, like: Tensor, tensors: list[Argument], flags: list[int]
    ) -> None:
        cut, rows = self._cut, call.rows
        sizes: list[Argument] = [rows.T, rows.B, call.layer.hidden_size]
        meeting: list[Argument] = []
        if cut.key.plan == "grid":
            meeting = list(self._meeting(call, like))
            sizes.append(cut.columns)
        shape = Shape(cut.grid, cut.threads, cut.shared, cooperative=bool(meeting))
        self._launcher(cut.key, shape, [*tensors, *meeting, call.starts, *sizes, *flags])

    def _meeting(self, call: Forward | Backward, like: Tensor) -> tuple[Tensor, Tensor]:
        """The buffer that states are exchanged through, and the barrier's counters."""
        H, D = call.layer.hidden_size, call.layer.num_directions
        real = torch.float64 if like.dtype is torch.float64 else torch.float32
        count = exchange_elements(self._cut.key, D, call.rows.B, H)
        exchange = torch.empty(count, dtype=real, device=like.device)
        counters = torch.zeros(counter_elements(D), dtype=torch.int64, device=like.device)
        return exchange, counters

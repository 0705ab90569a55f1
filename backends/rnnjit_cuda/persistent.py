"""The plans of one launch for all steps."""

from __future__ import annotations

import torch
from torch import Tensor

from rnnjit.recurrence import Backward, Forward, Recurrence
from rnnjit_cuda.kernels import Share, counter_elements, exchange_elements, padded
from rnnjit_cuda.launch import Argument, Launcher, Shape
from rnnjit_cuda.plan import Cut


class Persistent(Recurrence):
    """Recurrences in a single kernel, of any plan but "step".

    Args:
        cut: what to launch.
        launcher: starts kernels.
    """

    def __init__(self, cut: Cut, launcher: Launcher) -> None:
        self._cut, self._launcher = cut, launcher

    def forward(self, call: Forward) -> None:
        """One launch of a forward kernel."""
        weights = self._weights(call.w_hh)
        tensors: list[Argument] = [call.y, *weights, call.h0, call.h_n]
        self._launch(call, call.y, tensors, [])

    def backward(self, call: Backward) -> None:
        """One launch of a backward kernel."""
        weights = self._weights([w_hh.t() for w_hh in call.w_hh] if self._streams else call.w_hh)
        # Where there is no gradient the kernel reads none, and takes any tensor.
        grad_y = call.y if call.grad_y is None else call.grad_y
        grad_h_n = call.grad_h0 if call.grad_h_n is None else call.grad_h_n
        tensors: list[Argument] = [call.dz, grad_y, call.y, *weights, grad_h_n, call.grad_h0]
        flags = [int(call.grad_y is not None), int(call.grad_h_n is not None)]
        self._launch(call, call.y, tensors, flags)

    @property
    def _streams(self) -> bool:
        return self._cut.key.plan == "stream"

    def _weights(self, w_hh: list[Tensor]) -> list[Tensor]:
        """The weights of both directions, padded for "stream" as its kernels read them."""
        part = self._cut.part
        if self._streams and part is not None:
            w_hh = [_panel(w, self._cut.grid[0] * part.columns) for w in w_hh]
        return [w_hh[0], w_hh[-1]]

    def _launch(
        self, call: Forward | Backward, like: Tensor, tensors: list[Argument], flags: list[int]
    ) -> None:
        cut, rows = self._cut, call.rows
        if not rows.B:
            return
        sizes: list[Argument] = [rows.T, rows.B, call.layer.hidden_size]
        meeting: list[Argument] = []
        if cut.part is not None:
            meeting = list(self._meeting(cut.part, call.layer.hidden_size, like))
            sizes += [cut.part.columns, cut.part.splits, cut.part.slab]
        # Where there are no offsets the kernel reads none, and takes any tensor.
        starts, packed = (like, 0) if call.starts is None else (call.starts, 1)
        shape = Shape(cut.grid, cut.threads, cut.shared, cooperative=bool(meeting))
        self._launcher(cut.key, shape, [*tensors, *meeting, starts, *sizes, packed, *flags])

    def _meeting(self, part: Share, H: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """The buffer that states are exchanged through, and the barriers' counters."""
        grid = self._cut.grid
        real = torch.float64 if like.dtype is torch.float64 else torch.float32
        exchange = torch.empty(exchange_elements(grid, H, part), dtype=real, device=like.device)
        counters = torch.zeros(counter_elements(grid), dtype=torch.int64, device=like.device)
        return exchange, counters


def _panel(w: Tensor, columns: int) -> Tensor:
    """`w` `[H, H]` with zeros behind, `[columns, padded(H)]`."""
    H = w.shape[0]
    panel = w.new_zeros(columns, padded(H))
    panel[:H, :H] = w
    return panel

"""Recurrences of any size: for each step, torch's matrix product and a pointwise kernel."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from rnnjit import Rows
from rnnjit.recurrence import Backward, Forward, Recurrence
from rnnjit_cuda.kernels import blocks
from rnnjit_cuda.launch import Launcher, Shape
from rnnjit_cuda.plan import Plan


class Step(NamedTuple):
    """The rows of one step.

    Attributes:
        start, stop: its first row, and one past its last.
        size: how many there are.
    """

    start: int
    stop: int
    size: int


class PerStep(Recurrence):
    """Recurrences with launches for each step; the host never waits for the device.

    Args:
        plan: what to launch.
        launcher: starts kernels.
    """

    def __init__(self, plan: Plan, launcher: Launcher) -> None:
        self._plan, self._launcher = plan, launcher

    def forward(self, call: Forward) -> None:
        """`y_t = activation(z_t + h_{t-1} W_hh^T)` for each step."""
        H = call.layer.hidden_size
        for d, w_hh in enumerate(call.w_hh):
            y, h0, h_n = call.y[:, d * H : (d + 1) * H], call.hx[0][d], call.h_n[0][d]
            before, held = h0, 0
            for step in steps(call.rows, backwards=d == 1):
                now, linked = y[step.start : step.stop], min(step.size, held)
                if linked:
                    now[:linked].addmm_(before[:linked], w_hh.t())
                if step.size > linked:
                    now[linked:].addmm_(h0[linked : step.size], w_hh.t())
                self._launch(step.size, H, [now, step.size, H, y.stride(0)])
                h_n[step.size : held].copy_(before[step.size : held])
                before, held = now, step.size
            h_n[:held].copy_(before[:held])

    def backward(self, call: Backward) -> None:
        """`dz_t = (g_t + grad_y_t) activation'(y_t)`, `g_{t-1} = dz_t W_hh` for each step."""
        H = call.layer.hidden_size
        for d, w_hh in enumerate(call.w_hh):
            own = slice(d * H, (d + 1) * H)
            state, grad_h_n = call.grad_hx[0][d], call.grad_h_n[0]
            if grad_h_n is None:
                state.zero_()
            else:
                state.copy_(grad_h_n[d])
            for step in steps(call.rows, backwards=d == 0):
                rows = slice(step.start, step.stop)
                y, dz = call.y[rows, own], call.dz[rows, own]
                grad_y = y if call.grad_y is None else call.grad_y[rows, own]
                sizes = [step.size, H, y.stride(0), int(call.grad_y is not None)]
                self._launch(step.size, H, [dz, state, grad_y, y, *sizes])
                torch.mm(dz, w_hh, out=state[: step.size])

    def _launch(self, rows: int, H: int, arguments: list[Tensor | int]) -> None:
        key = self._plan.key
        shape = Shape(blocks(key, 1, rows, H), self._plan.threads)
        self._launcher(key, shape, arguments)


def steps(rows: Rows, *, backwards: bool) -> Iterator[Step]:
    """The steps that have rows, from the first to the last or backwards."""
    found, start = [], 0
    for size in rows.sizes:
        found.append(Step(start, start + size, size))
        start += size
    for step in reversed(found) if backwards else found:
        if step.size:
            yield step

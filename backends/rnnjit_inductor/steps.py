"""Steps that are not compiled: two of torch's operators each, in place.

    forward    y_t = z_t + h_{t-1} W_hh^T, then the activation
    backward   dz_t = a_t activation'(y_t),  a_{t-1} = grad_y_{t-1} + dz_t W_hh

Both walk over packed rows in either direction; where the next step has more rows, sequences begin
or end there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from rnnjit.recurrence import Backward, Forward, Recurrence


class Steps(Recurrence):
    """Recurrences step by step."""

    def forward(self, call: Forward) -> None:
        """All steps of each direction."""
        H = call.layer.hidden_size
        for d, w_hh in enumerate(call.w_hh):
            y = call.y[:, d * H : (d + 1) * H]
            sizes = call.rows.sizes
            walk_forward(call.layer.cell, y, sizes, d == 1, w_hh.t(), call.h0[d], call.h_n[d])

    def backward(self, call: Backward) -> None:
        """All steps of each direction."""
        H = call.layer.hidden_size
        for d, w_hh in enumerate(call.w_hh):
            own = slice(d * H, (d + 1) * H)
            state = call.grad_h0[d]
            if call.grad_h_n is None:
                state.zero_()
            else:
                state.copy_(call.grad_h_n[d])
            grad_y = None if call.grad_y is None else call.grad_y[:, own]
            walk_backward(
                call.layer.cell,
                call.y[:, own],
                grad_y,
                call.dz[:, own],
                call.rows.sizes,
                d == 0,
                w_hh,
                state,
            )


def walk_forward(
    cell: str,
    y: Tensor,
    sizes: Sequence[int],
    from_last: bool,
    w_t: Tensor,
    h0: Tensor,
    h_n: Tensor,
) -> None:
    """Turn the input's share in y `[N, H]` into states, and write the last ones to h_n `[B, H]`.

    Args:
        cell: name of the pointwise part.
        y: holds x W_ih^T + b.
        sizes: rows of each step.
        from_last: whether to walk from the last step to the first.
        w_t: `[H, H]`, W_hh transposed.
        h0: `[B, H]`, where sequences start.
        h_n: written.
    """
    activate = torch.tanh_ if cell == "tanh" else torch.relu_
    before, held = h0, 0
    for now, size in _walk(sizes, from_last, y):
        if size == held or not held:
            now.addmm_(before[:size], w_t)
        elif size < held:
            h_n[size:held].copy_(before[size:held])
            now.addmm_(before[:size], w_t)
        else:
            now[:held].addmm_(before, w_t)
            now[held:].addmm_(h0[held:size], w_t)
        activate(now)
        before, held = now, size
    h_n[:held].copy_(before[:held])


def walk_backward(
    cell: str,
    y: Tensor,
    grad_y: Tensor | None,
    dz: Tensor,
    sizes: Sequence[int],
    from_last: bool,
    w_hh: Tensor,
    state: Tensor,
) -> None:
    """Write dz `[N, H]`, and to `state` the gradients by the initial states.

    Args:
        cell: name of the pointwise part.
        y: `[N, H]`, the states.
        grad_y: `[N, H]`, or None for zeros.
        dz: written.
        sizes: rows of each step.
        from_last: whether to walk from the last step to the first.
        w_hh: `[H, H]`.
        state: `[B, H]`; holds the gradients by the last states.
    """
    given = (y, dz) if grad_y is None else (y, dz, grad_y)
    for own_y, own_dz, *own_grad, size in _walk(sizes, from_last, *given):
        g = state[:size]
        if own_grad:
            g += own_grad[0]
        if cell == "tanh":
            torch.ops.aten.tanh_backward.grad_input(g, own_y, grad_input=own_dz)
        else:
            torch.ops.aten.threshold_backward.grad_input(g, own_y, 0, grad_input=own_dz)
        torch.mm(own_dz, w_hh, out=g)


def _walk(sizes: Sequence[int], from_last: bool, *tensors: Tensor) -> Iterator[tuple[Any, ...]]:
    """The rows of each step in some tensors, and how many they are, in the order of a walk."""
    steps = zip(*(tensor.split_with_sizes(list(sizes)) for tensor in tensors), sizes, strict=True)
    for step in reversed(list(steps)) if from_last else steps:
        if step[-1]:
            yield step

"""Recurrences by compiled chunks; of a dense batch, steps that fill no chunk are not compiled."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from rnnjit.recurrence import Backward, Forward, Recurrence
from rnnjit_inductor.compiler import Compiled, Key, compiled
from rnnjit_inductor.graphs import panels
from rnnjit_inductor.layout import DenseLayout, Layout, PackedLayout, last_rows
from rnnjit_inductor.plan import Plan
from rnnjit_inductor.steps import walk_backward, walk_forward


class Chunks(Recurrence):
    """Recurrences of calls that have rows, and at least as many steps as a chunk.

    Args:
        plan: what is compiled.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan

    def forward(self, call: Forward) -> None:
        """The chunks of each direction, then the steps that are left."""
        run = self._compiled("forward", call)
        for d in range(call.layer.num_directions):
            self._forward(call, run, d)

    def backward(self, call: Backward) -> None:
        """The chunks of each direction, then the steps that are left."""
        run = self._compiled("backward", call)
        for d in range(call.layer.num_directions):
            self._backward(call, run, d)

    def _forward(self, call: Forward, run: Compiled, d: int) -> None:
        H, rows = call.layer.hidden_size, call.rows
        y, h_n, w_t, from_last = (
            call.y[:, d * H : (d + 1) * H],
            call.h_n[d],
            call.w_hh[d].t(),
            d == 1,
        )
        layout = self._layout(call, from_last, descending=False)
        laid, weights = layout.lay(y), panels(w_t, self._plan.tile)
        h = self._state(call.h0[d], layout)
        for z in self._blocks(laid, layout):
            (states,) = run(z, _first_rows(h, z), weights)
            z.copy_(states)
            h = states[-1]
        layout.unlay(laid, y)
        if isinstance(layout, DenseLayout):
            before = self._true(h, h_n)
            h_n.copy_(before)
            rest = y[layout.rest]
            walk_forward(call.layer.cell, rest, layout.rest_sizes, from_last, w_t, before, h_n)
        else:
            h_n.copy_(y[: rows.B] if from_last else y[last_rows(rows, layout.starts)])

    def _backward(self, call: Backward, run: Compiled, d: int) -> None:
        H, rows, w_hh, from_last = call.layer.hidden_size, call.rows, call.w_hh[d], d == 0
        own = slice(d * H, (d + 1) * H)
        y, dz, grad_h0 = call.y[:, own], call.dz[:, own], call.grad_h0[d]
        grad_y = None if call.grad_y is None else call.grad_y[:, own]
        layout = self._layout(call, from_last, descending=True)
        laid_y, laid_dz = layout.lay(y), layout.room(dz)
        laid_grad = _zeros_like(laid_y) if grad_y is None else layout.lay(grad_y)
        weights = panels(w_hh, self._plan.tile)
        g = self._state(grad_h0.zero_() if call.grad_h_n is None else call.grad_h_n[d], layout)
        laid_all = (self._blocks(laid, layout) for laid in (laid_y, laid_grad, laid_dz))
        for block, grad, found in zip(*laid_all, strict=True):
            own_dz, g = run(block, grad, _first_rows(g, block), weights)
            found.copy_(own_dz)
        layout.unlay(laid_dz, dz)
        if isinstance(layout, DenseLayout):
            grad_h0.copy_(self._true(g, grad_h0))
            rest = layout.rest
            grad_rest = None if grad_y is None else grad_y[rest]
            walk_backward(
                call.layer.cell,
                y[rest],
                grad_rest,
                dz[rest],
                layout.rest_sizes,
                from_last,
                w_hh,
                grad_h0,
            )
        else:
            first = dz[: rows.B] if from_last else dz[last_rows(rows, layout.starts)]
            torch.mm(first, w_hh, out=grad_h0)

    def _compiled(
        self, pass_: Literal["forward", "backward"], call: Forward | Backward
    ) -> Compiled:
        y = call.y
        return compiled(Key(pass_, call.layer.cell, y.dtype, y.device.type, self._plan))

    def _layout(self, call: Forward | Backward, from_last: bool, *, descending: bool) -> Layout:
        rows, H = call.rows, call.layer.hidden_size
        if call.starts is None:
            return DenseLayout(rows, from_last, descending, H, self._plan)
        return PackedLayout(rows, call.starts, from_last, descending, H, self._plan)

    def _state(self, state: Tensor, layout: Layout) -> Tensor:
        """A state `[B, H]` as the first chunk takes it, `[R, q, U, P, L]`."""
        R, U, L = self._plan.tile
        batch, H = state.shape
        size = layout.chunks[0].size
        padded = pad(state, (0, self._plan.tile.padded(H) - H, 0, size - batch))
        return padded.view(R, size // R, U, -1, L)

    def _true(self, state: Tensor, like: Tensor) -> Tensor:
        """What of a chunk's state is no padding, `[B, H]`."""
        batch, H = like.shape
        return state.flatten(2).flatten(0, 1)[:batch, :H]

    def _blocks(self, laid: Tensor, layout: Layout) -> Iterator[Tensor]:
        """`[K, R, q, U, P, L]` of the rows of each chunk."""
        steps, (R, U, L), _ = self._plan
        for start, size in layout.chunks:
            yield laid[start : start + steps * size].view(steps, R, size // R, U, -1, L)


def _first_rows(state: Tensor, block: Tensor) -> Tensor:
    """The state `[R, q, U, P, L]` of those rows that are still in a chunk's block."""
    if state.shape[1] == block.shape[2]:
        return state
    return state.flatten(0, 1)[: block.shape[1] * block.shape[2]].view(block.shape[1:])


def _zeros_like(laid: Tensor) -> Tensor:
    """Zeros of a shape in the memory of one row."""
    return laid.new_zeros((1, laid.shape[1])).expand(laid.shape)

"""Recurrences as compiled chunks; steps of a dense batch that fill no chunk are not compiled.

A chunk sees a step's rows `[B, H]` as `[R, q, U, P, L]`: B, padded, is R * q (R rows share a
register tile, q tiles); H, padded, is U * P * L (L lanes of a vector, U panels at once, P groups of
them). K is the number of a chunk's steps; see `plan.Tile`. `lay` copies rows into that form, `room`
makes memory of that form to write to, `unlay` copies it back.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from rnnjit import Rows
from rnnjit.recurrence import Backward, Forward, Recurrence
from rnnjit_inductor.compiler import Compiled, Key, compiled
from rnnjit_inductor.graphs import has_share, panels
from rnnjit_inductor.layout import DenseLayout, Layout, PackedLayout, last_rows
from rnnjit_inductor.plan import Plan
from rnnjit_inductor.steps import backward_rows, forward_rows, walk_backward, walk_forward


class Chunks(Recurrence):
    """Runs recurrences chunk by chunk: calls with one row and one whole chunk of steps at least.

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
        cell, G, from_last = call.layer.cell, len(call.layer.cell.gates), d == 1
        h0, h_n = call.hx[0][d], call.h_n[0][d]
        given = forward_rows(call, d)
        layout = self._layout(call, from_last, descending=False)
        gates = [layout.lay(z) for z in given.gates]
        y = gates[0] if given.y is given.z else layout.room(given.y)
        written = [y, *map(layout.room, given.saved)]
        weights = [panels(w.t(), self._plan.tile) for w in call.w_hh[d].chunk(G)]
        h = self._state(h0, layout)
        for z, into in self._blocks(layout, gates, written):
            found = run(*z, _first_rows(h, z[0]), *weights)
            # Without a backward pass the saved values are dropped.
            for memory, values in zip(into, found, strict=False):
                memory.copy_(values)
            h = found[0][-1]
        for laid, rows in zip(written, (given.y, *given.saved), strict=True):
            layout.unlay(laid, rows)
        if isinstance(layout, DenseLayout):
            before = self._true(h, h_n)
            h_n.copy_(before)
            rest, w_t = given.part(layout.rest), call.w_hh[d].t()
            walk_forward(cell, rest, layout.rest_sizes, from_last, w_t, before, h_n)
        else:
            h_n.copy_(given.y[_ends(call.rows, layout, from_last)])

    def _backward(self, call: Backward, run: Compiled, d: int) -> None:
        # The backward pass walks each direction against its own order.
        cell, G, from_last = call.layer.cell, len(call.layer.cell.gates), d == 0
        grad_h0, grad_h_n = call.grad_hx[0][d], call.grad_h_n[0]
        given, w_hh = backward_rows(call, d), call.w_hh[d]
        layout = self._layout(call, from_last, descending=True)
        read, gates = [layout.lay(rows) for rows in given.read], list(given.dz.chunk(G, 1))
        written = [layout.room(dz) for dz in gates]
        grad_y = _zeros_like(written[0]) if given.grad_y is None else layout.lay(given.grad_y)
        # A packed sequence may end in any chunk, and so g is kept for every row.
        kept = None
        if has_share(cell) and isinstance(layout, PackedLayout):
            kept = torch.empty_like(gates[0], memory_format=torch.contiguous_format)
            gates.append(kept)
            written.append(layout.room(kept))
        weights = [panels(w, self._plan.tile) for w in w_hh.chunk(G)]
        g = self._state(grad_h0.zero_() if grad_h_n is None else grad_h_n[d], layout)
        for blocks, into in self._blocks(layout, [*read, grad_y], written):
            found = run(*blocks, _first_rows(g, blocks[0]), *weights)
            for memory, values in zip(into, found, strict=False):
                memory.copy_(values)
            g = found[-1][0] if has_share(cell) else found[-1]
        for laid, rows in zip(written, gates, strict=True):
            layout.unlay(laid, rows)
        if isinstance(layout, DenseLayout):
            grad_h0.copy_(self._true(g, grad_h0))
            rest = given.part(layout.rest)
            walk_backward(cell, rest, layout.rest_sizes, from_last, w_hh, grad_h0)
        elif kept is not None:
            grad_h0.copy_(kept[_ends(call.rows, layout, from_last)])
        else:
            torch.mm(given.dz[_ends(call.rows, layout, from_last)], w_hh, out=grad_h0)

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
        """A chunk's state without padding, `[B, H]`."""
        batch, H = like.shape
        return state.flatten(2).flatten(0, 1)[:batch, :H]

    def _blocks(
        self, layout: Layout, read: list[Tensor], written: list[Tensor]
    ) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
        """`[K, R, q, U, P, L]` of each chunk's rows, of the tensors read and of those written."""
        steps, (R, U, L), _ = self._plan
        for start, size in layout.chunks:
            own, shape = slice(start, start + steps * size), (steps, R, size // R, U, -1, L)
            yield (
                [laid[own].view(shape) for laid in read],
                [laid[own].view(shape) for laid in written],
            )


def _ends(rows: Rows, layout: PackedLayout, from_last: bool) -> slice | Tensor:
    """The rows at which a walk over a packed batch ends."""
    return slice(0, rows.B) if from_last else last_rows(rows, layout.starts)


def _first_rows(state: Tensor, block: Tensor) -> Tensor:
    """The state of the sequences with rows in this chunk, the first ones: `[R, q, U, P, L]`."""
    if state.shape[1] == block.shape[2]:
        return state
    return state.flatten(0, 1)[: block.shape[1] * block.shape[2]].view(block.shape[1:])


def _zeros_like(laid: Tensor) -> Tensor:
    """Zeros of the same shape, expanded from a single row."""
    return laid.new_zeros((1, laid.shape[1])).expand(laid.shape)

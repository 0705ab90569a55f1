"""Recurrences as compiled chunks; steps of a dense batch that fill no chunk are not compiled.

A chunk sees a step's rows `[B, H]` as `[R, q, P, L]`: B, padded, is R * q (R rows share a register
tile, q tiles); H, padded, is P * L (P panels of L columns). K is the number of a chunk's steps; see
`plan.Tile`. `lay` copies rows into that form, `room` makes memory of that form to write to, `unlay`
copies it back.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from rnnjit import Rows
from rnnjit.recurrence import Backward, Forward, Recurrence, dz_blocks
from rnnjit_inductor.compiler import Compiled, Key, compiled
from rnnjit_inductor.direction import (
    backward_rows,
    first_gradients,
    fixed_values,
    forward_rows,
    gates_of,
)
from rnnjit_inductor.graphs import biased, has_share, panels
from rnnjit_inductor.layout import DenseLayout, Layout, PackedLayout, last_rows
from rnnjit_inductor.plan import MATRIX, Plan
from rnnjit_inductor.programs import backward_of, step_of, with_gradients
from rnnjit_inductor.steps import walk_backward, walk_forward


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
        layer, from_last, given = call.layer, d == 1, forward_rows(call, d)
        hx, h_n = ([state[d] for state in states] for states in (call.hx, call.h_n))
        wide, narrow = self._layouts(call, from_last, descending=False)
        gates = [wide.lay(z) for z in gates_of(given.z, len(layer.cell.gates))]
        y = gates[0] if given.y is given.z else narrow.room(given.y)
        # In the order of the chunk's results: h, the outputs if they are projected, the other
        # states, saved values. What no backward pass reads has no rows, and is not kept.
        others = given.states or self._rows_of_states(call, wide)
        targets: list[_Target | None] = [_Target(given.y, y, narrow)]
        targets += [_target(given.out, wide)] if layer.proj_size else []
        first = len(targets)
        targets += [_target(rows, wide) for rows in [*others, *given.saved]]
        fixed = self._forward_weights(call, d)
        states = [self._state(state, wide) for state in hx]
        read = [*gates, *(wide.lay(each) for each in given.inputs)]
        for block, into in self._blocks(wide, read, _laid(targets)):
            found = run(*block, *(_first_rows(state, block[0]) for state in states), *fixed)
            _store(found, into)
            states = [found[0][-1], *(each[-1] for each in found[first : first + len(hx) - 1])]
        _unlay(targets)
        if isinstance(wide, DenseLayout):
            before = [_true(state, last) for state, last in zip(states, h_n, strict=True)]
            for last, state in zip(h_n, before, strict=True):
                last.copy_(state)
            walk_forward(call, d, given.part(wide.rest), wide.rest_sizes, before, h_n)
        else:
            ends = _ends(call.rows, wide, from_last)
            for last, rows in zip(h_n, [given.y, *others], strict=True):
                last.copy_(rows[ends])

    def _backward(self, call: Backward, run: Compiled, d: int) -> None:
        # The backward pass walks each direction against its own order.
        layer, from_last = call.layer, d == 0
        cell, A = layer.cell, len(layer.cell.accumulators)
        given, w_hh, grads = backward_rows(call, d), call.w_hh[d], first_gradients(call, d)
        wide, narrow = self._layouts(call, from_last, descending=True)
        blocks = gates_of(given.dz, A)
        # In the order of the chunk's results: dz, those of parameters and row inputs, dh, the g of
        # the states but h, that of h.
        targets = [_target(blocks[block], wide) for block in dz_blocks(cell)]
        written = (given.grad_parameters, given.grad_inputs)
        for tensors, numbers in zip(written, with_gradients(cell), strict=True):
            own = tensors or []
            targets += [_target(each, wide) for each in own] or [None] * len(numbers)
        targets += [] if given.dh is None else [_target(given.dh, narrow)]
        first, packed = len(targets), isinstance(wide, PackedLayout)
        # A packed sequence may end in any chunk, and so each g is kept for every row.
        kept = [torch.empty_like(blocks[0], memory_format=torch.contiguous_format) for _ in grads]
        shared = has_share(cell)
        targets += [_target(rows, wide) if packed else None for rows in kept[1:]]
        targets += [_target(kept[0], wide) if packed and shared else None]
        fixed = self._backward_weights(call, d)
        states = [self._state(grad, wide) for grad in grads]
        read = [wide.lay(rows) for rows in given.read]
        like = given.dz if given.dh is None else given.dh
        read.append(_laid_or_zeros(given.grad_y, narrow, like[:, : layer.output_size]))
        if call.grad_states:
            read += [_laid_or_zeros(each, wide, blocks[0]) for each in given.grad_states]
        for block, into in self._blocks(wide, read, _laid(targets)):
            found = run(*block, *(_first_rows(state, block[-1]) for state in states), *fixed)
            _store(found, into)
            last = found[-1][0] if shared else found[-1]
            states = [last, *(each[0] for each in found[first:-1])]
        _unlay(targets)
        if isinstance(wide, DenseLayout):
            for grad, state in zip(grads, states, strict=True):
                grad.copy_(_true(state, grad))
            walk_backward(call, d, given.part(wide.rest), wide.rest_sizes, grads)
            return
        ends = _ends(call.rows, wide, from_last)
        for grad, rows in zip(grads[1:], kept[1:], strict=True):
            grad.copy_(rows[ends])
        if shared:
            grads[0].copy_(kept[0][ends])
        elif not cell.has_product:
            grads[0].zero_()
        else:
            torch.mm(given.dz[ends][:, : len(w_hh)], w_hh, out=grads[0])

    def _compiled(
        self, pass_: Literal["forward", "backward"], call: Forward | Backward
    ) -> Compiled:
        layer, y = call.layer, call.y
        options = layer.proj_size > 0, isinstance(call, Backward) and bool(call.grad_states)
        return compiled(Key(pass_, layer.cell, y.dtype, y.device.type, self._plan, *options))

    def _layouts(
        self, call: Forward | Backward, from_last: bool, *, descending: bool
    ) -> tuple[Layout, Layout]:
        """The layouts of rows of H features and of rows of the first state."""
        equal = call.rows.batch_sizes is None or int(call.rows.batch_sizes[-1]) == call.rows.B

        def layout(features: int) -> Layout:
            if call.starts is None or equal:
                return DenseLayout(call.rows, from_last, descending, features, self._plan)
            return PackedLayout(call.rows, call.starts, from_last, descending, features, self._plan)

        wide = layout(call.layer.hidden_size)
        return wide, layout(call.layer.proj_size) if call.layer.proj_size else wide

    def _forward_weights(self, call: Forward, d: int) -> list[Tensor]:
        """A direction's weights, biases and fixed values, as the chunk takes them."""
        cell, tile, H = call.layer.cell, self._plan.tile, call.layer.hidden_size
        w_hh, w_hr = call.w_hh[d : d + 1] if cell.has_product else [], call.w_hr[d : d + 1]
        found = [*w_hh, *w_hr]
        if tile != MATRIX:
            gates = [gate for w in w_hh for gate in w.chunk(len(cell.gates))]
            found = [panels(w.t(), tile) for w in [*gates, *w_hr]]
        bias = call.b_hh[d] if call.b_hh else call.z.new_zeros(len(cell.gates) * H)
        own = [bias[g * H : (g + 1) * H] for g in biased(cell)]
        own += fixed_values(call, step_of(cell, True), d)
        return found + [self._columns(each, H) for each in own]

    def _backward_weights(self, call: Backward, d: int) -> list[Tensor]:
        """A direction's weights and fixed values as the chunk takes them."""
        cell = call.layer.cell
        w_hh, w_hr = call.w_hh[d : d + 1] if cell.has_product else [], call.w_hr[d : d + 1]
        found = [*w_hh, *w_hr]
        if self._plan.tile != MATRIX:
            gates = [gate for w in w_hh for gate in w.chunk(len(cell.gates))]
            found = [panels(w, self._plan.tile) for w in [*gates, *w_hr]]
        own = fixed_values(call, backward_of(cell, True, True), d)
        return found + [self._columns(each, call.layer.hidden_size) for each in own]

    def _columns(self, values: Tensor, features: int) -> Tensor:
        """`[H]` or a scalar as the chunk takes what is the same in all rows, `[P, L]`."""
        tile = self._plan.tile
        return pad(values.expand(features), (0, tile.padded(features) - features)).view(
            -1, tile.lanes
        )

    def _rows_of_states(self, call: Forward, layout: Layout) -> list[Tensor | None]:
        """Rows for the states but the first if the last of a packed batch are found in them."""
        shape = (call.rows.N, call.layer.hidden_size)
        packed = isinstance(layout, PackedLayout)
        return [call.z.new_empty(shape) if packed else None for _ in call.hx[1:]]

    def _state(self, state: Tensor, layout: Layout) -> Tensor:
        """A state `[B, H]` as the first chunk takes it, `[R, q, P, L]`."""
        R, L = self._plan.tile
        batch, H = state.shape
        size = layout.chunks[0].size
        padded = pad(state, (0, self._plan.tile.padded(H) - H, 0, size - batch))
        return padded.view(R, size // R, -1, L)

    def _blocks(
        self, layout: Layout, read: list[Tensor], written: list[Tensor | None]
    ) -> Iterator[tuple[list[Tensor], list[Tensor | None]]]:
        """`[K, R, q, P, L]` of each chunk's rows, of the tensors read and of those written."""
        count = len(layout.chunks)
        reads = [self._cut(laid, layout) for laid in read]
        writes = [[None] * count if laid is None else self._cut(laid, layout) for laid in written]
        for c in range(count):
            yield [own[c] for own in reads], [own[c] for own in writes]

    def _cut(self, laid: Tensor, layout: Layout) -> list[Tensor]:
        """The rows of each chunk."""
        steps, (R, L), _ = self._plan
        if isinstance(layout, DenseLayout):  # equal chunks: one operator for all of them
            size = layout.chunks[0].size
            blocks = laid.view(len(layout.chunks), steps, R, size // R, -1, L).unbind(0)
            return [blocks[start // (steps * size)] for start, _ in layout.chunks]
        return [
            laid[start : start + steps * size].view(steps, R, size // R, -1, L)
            for start, size in layout.chunks
        ]


class _Target(NamedTuple):
    """Where a result of the chunks goes.

    Attributes:
        rows: `[N, features]`.
        laid: memory like that of the rows, as chunks write it.
        layout: how it is laid out.
    """

    rows: Tensor
    laid: Tensor
    layout: Layout


def _target(rows: Tensor | None, layout: Layout) -> _Target | None:
    return None if rows is None else _Target(rows, layout.room(rows), layout)


def _laid(targets: Sequence[_Target | None]) -> list[Tensor | None]:
    return [None if each is None else each.laid for each in targets]


def _store(found: Sequence[Tensor], into: Sequence[Tensor | None]) -> None:
    """Copy a chunk's results; without a backward pass some of them are dropped."""
    for memory, values in zip(into, found, strict=False):
        if memory is not None:
            memory.copy_(values)


def _unlay(targets: Sequence[_Target | None]) -> None:
    """Write the rows of all targets."""
    for each in targets:
        if each is not None:
            each.layout.unlay(each.laid, each.rows)


def _true(state: Tensor, like: Tensor) -> Tensor:
    """A chunk's state without padding, `[B, features]`."""
    batch, features = like.shape
    return state.flatten(2).flatten(0, 1)[:batch, :features]


def _ends(rows: Rows, layout: PackedLayout, from_last: bool) -> slice | Tensor:
    """The rows at which a walk over a packed batch ends."""
    return slice(0, rows.B) if from_last else last_rows(rows, layout.starts)


def _first_rows(state: Tensor, block: Tensor) -> Tensor:
    """The state of the sequences with rows in this chunk, the first ones: `[R, q, P, L]`."""
    R, q = block.shape[1:3]
    if state.shape[1] == q:
        return state
    return state.flatten(0, 1)[: R * q].view(R, q, *state.shape[2:])


def _laid_or_zeros(rows: Tensor | None, layout: Layout, like: Tensor) -> Tensor:
    """Rows as chunks take them; zeros, expanded from a single row, if there are none."""
    if rows is not None:
        return layout.lay(rows)
    laid = layout.room(like)
    return laid.new_zeros((1, laid.shape[1])).expand(laid.shape)

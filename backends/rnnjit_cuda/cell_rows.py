"""Device functions by which the persistent kernels of any cell read and write a row's values.

Tensors are those of `cell_layout`. Behind them come, forward, w_hh and b_hh of both directions; and
backwards grad_y, w_hh of both directions, the S of grad_h_n and, where they are recorded, the
gradients [N, D*H] of state 1 .. S-1 after every step. Then come those of the cell:

    parameters       P of direction 0, P of direction 1, each [H]
    row inputs       [N, ld_r]: from column (d*R + r) * H on those of direction d; if R > 0
    of parameters    [N, ld_dp]: the gradients of the parameters by each row; if P > 0
    of row inputs    [N, ld_dr]: those of the row inputs; if R > 0

The last two are those of backward kernels, with the columns of P or R vectors for each direction.
They are not written where `ld_dp` or `ld_dr` is 0. All other tensors are contiguous.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from numba import types

from rnnjit_cuda.cell_layout import CellLayout, Y
from rnnjit_cuda.primitives import Element, inlined


class ForwardRows(NamedTuple):
    """What a forward kernel does with a row n, of one hidden unit (`column`).

    Attributes:
        parameters: `(tensors, given, d, column)`: the inputs of the step that are the same for all
            rows, to their places in `given`.
        load: `(tensors, z, at, n, d, D, H, column, has_bias, ld_r)`: what the accumulators are
            without h W_hh^T, and the row inputs, to z[at] and on.
        join: `(given, z, at, sums)`: what was loaded to its places in `given`, with the sum of each
            gate added to its accumulators.
        store: `(tensors, found, n, d, D, H, column, keep)`: y, states and saved values.
        start: `(tensors, state, at, place)`: the initial states, to state[at] and on.
        end: `(tensors, state, at, place)`: h_n.
    """

    parameters: Callable[..., None]
    load: Callable[..., None]
    join: Callable[..., None]
    store: Callable[..., None]
    start: Callable[..., None]
    end: Callable[..., None]


class BackwardRows(NamedTuple):
    """What a backward kernel does with a row n, of one hidden unit (`column`).

    Attributes:
        parameters: `(tensors, given, d, column)`: the inputs of the gradient that are the same for
            all rows, to their places in `given`.
        load: `(tensors, given, at, n, n_before, linked, place, d, D, H, column, has_grad_y, ld_r)`:
            what the gradient reads, to given[at] and on: of row n, of the row n_before of the
            previous step or, if not `linked`, of hx at `place`; grad_y; and the gradients of the
            row's states.
        join: `(given)`: adds the gradients of the row's states to those of the new states.
        store: `(tensors, found, n, d, D, H, column, ld_dp, ld_dr)`: dz, and the gradients of
            parameters and row inputs.
        start: `(tensors, grad, at, place, has_grad_h_n)`: the S gradients of h_n, each zero if its
            bit of `has_grad_h_n` is.
        end: `(tensors, grad, at, place)`: grad_hx.
    """

    parameters: Callable[..., None]
    load: Callable[..., None]
    join: Callable[..., None]
    store: Callable[..., None]
    start: Callable[..., None]
    end: Callable[..., None]


def forward_tensors(element: Element, layout: CellLayout) -> Any:
    """The numba type of a forward kernel's tensors."""
    count = layout.first_more + 4 + 2 * layout.parameters + (layout.row_inputs > 0)
    return types.UniTuple(types.CPointer(element.store), count)


def backward_tensors(element: Element, layout: CellLayout) -> Any:
    """The numba type of a backward kernel's tensors."""
    count = layout.first_more + 3 + layout.states + layout.recorded + 2 * layout.parameters
    count += (layout.parameters > 0) + 2 * (layout.row_inputs > 0)
    return types.UniTuple(types.CPointer(element.store), count)


def forward_rows(element: Element, layout: CellLayout) -> ForwardRows:
    """The device functions of forward kernels."""
    up, down, zero = element.up, element.down, element.real(0)
    G, A, S, K = layout.gates, layout.accumulators, layout.states, layout.saved
    inputs, hidden, first_saved = layout.inputs, layout.hidden, layout.first_saved
    first_hx, first_end, bias = layout.first_hx, layout.first_end, layout.first_more + 2
    P, R, first_parameter = layout.parameters, layout.row_inputs, layout.first_more + 4
    # numba types the bodies of loops that never run: indices must be valid there, too.
    row_inputs = first_parameter + 2 * P if R else 0

    def parameters(tensors: Any, given: Any, d: int, column: int) -> None:
        for p in range(P):
            own = tensors[first_parameter + p] if d == 0 else tensors[first_parameter + P + p]
            given[A + S + p] = up(own[column])

    def load(
        tensors: Any,
        z: Any,
        at: int,
        n: int,
        d: int,
        D: int,
        H: int,
        column: int,
        has_bias: int,
        ld_r: int,
    ) -> None:
        place = (n * D + d) * G * H + column
        for a in range(A):
            z[at + a] = zero
            if inputs[a] >= 0:
                z[at + a] = up(tensors[0][place + inputs[a] * H])
            elif has_bias != 0:
                b_hh = tensors[bias] if d == 0 else tensors[bias + 1]
                z[at + a] = up(b_hh[hidden[a] * H + column])
        for r in range(R):
            z[at + A + r] = up(tensors[row_inputs][n * ld_r + (d * R + r) * H + column])

    def join(given: Any, z: Any, at: int, sums: Any) -> None:
        for a in range(A):
            given[a] = z[at + a]
            if hidden[a] >= 0:
                given[a] += sums[hidden[a]]
        for r in range(R):
            given[A + S + P + r] = z[at + A + r]

    def store(
        tensors: Any, found: Any, n: int, d: int, D: int, H: int, column: int, keep: int
    ) -> None:
        place = (n * D + d) * H + column
        tensors[Y][place] = down(found[0])
        if keep != 0:
            for s in range(1, S):
                tensors[Y + s][place] = down(found[1 + s])
            for k in range(K):
                tensors[first_saved + k][place] = down(found[1 + S + k])

    def start(tensors: Any, state: Any, at: int, place: int) -> None:
        for s in range(S):
            state[at + s] = up(tensors[first_hx + s][place])

    def end(tensors: Any, state: Any, at: int, place: int) -> None:
        for s in range(S):
            tensors[first_end + s][place] = down(state[at + s])

    made: tuple[Callable[..., Any], ...] = parameters, load, join, store, start, end
    return ForwardRows(*map(inlined, made))


def backward_rows(element: Element, layout: CellLayout) -> BackwardRows:
    """The device functions of backward kernels."""
    up, down, zero = element.up, element.down, element.real(0)
    A, S, K, read = layout.accumulators, layout.states, layout.saved, layout.read
    after, before = layout.after or (0,), layout.before or (0,)
    afters, befores, blocks = len(layout.after), len(layout.before), layout.blocks
    first_saved, first_hx, first_end = layout.first_saved, layout.first_hx, layout.first_end
    grad_y, first_grad = layout.first_more, layout.first_more + 3
    recorded, first_recorded, ahead = layout.recorded, first_grad + S, layout.ahead
    P, R, first_parameter = layout.parameters, layout.row_inputs, first_recorded + recorded
    row_inputs = first_parameter + 2 * P if R else 0
    of_parameters = first_parameter + 2 * P + (R > 0) if P else 0
    of_row_inputs = first_parameter + 2 * P + 1 + (P > 0) if R else 0
    parameters_read, parameters_at = layout.parameters_read or (0,), ahead + S
    row_inputs_read, rows_at = layout.row_inputs_read or (0,), K + afters + befores
    count_parameters, count_rows = len(layout.parameters_read), len(layout.row_inputs_read)

    def parameters(tensors: Any, given: Any, d: int, column: int) -> None:
        for p in range(count_parameters):
            number = first_parameter + parameters_read[p]
            own = tensors[number] if d == 0 else tensors[P + number]
            given[parameters_at + p] = up(own[column])

    def load(
        tensors: Any,
        given: Any,
        at: int,
        n: int,
        n_before: int,
        linked: bool,
        start: int,
        d: int,
        D: int,
        H: int,
        column: int,
        has_grad_y: int,
        ld_r: int,
    ) -> None:
        place = (n * D + d) * H + column
        for k in range(K):
            given[at + k] = up(tensors[first_saved + k][place])
        for i in range(afters):
            given[at + K + i] = up(tensors[Y + after[i]][place])
        for i in range(befores):
            if linked:
                former = (n_before * D + d) * H + column
                given[at + K + afters + i] = up(tensors[Y + before[i]][former])
            else:
                given[at + K + afters + i] = up(tensors[first_hx + before[i]][start])
        for r in range(count_rows):
            own = n * ld_r + (d * R + row_inputs_read[r]) * H + column
            given[at + rows_at + r] = up(tensors[row_inputs][own])
        given[at + read] = zero
        if has_grad_y != 0:
            given[at + read] = up(tensors[grad_y][place])
        for s in range(recorded):
            given[at + read + 1 + s] = up(tensors[first_recorded + s][place])

    def join(given: Any) -> None:
        for s in range(recorded):
            given[ahead + 1 + s] += given[read + 1 + s]

    def store(
        tensors: Any,
        found: Any,
        n: int,
        d: int,
        D: int,
        H: int,
        column: int,
        ld_dp: int,
        ld_dr: int,
    ) -> None:
        place = (n * D + d) * A * H + column
        for a in range(A):
            tensors[0][place + blocks[a] * H] = down(found[a])
        for p in range(P):
            if ld_dp != 0:
                own = n * ld_dp + (d * P + p) * H + column
                tensors[of_parameters][own] = down(found[A + S + p])
        for r in range(R):
            if ld_dr != 0:
                own = n * ld_dr + (d * R + r) * H + column
                tensors[of_row_inputs][own] = down(found[A + S + P + r])

    def start(tensors: Any, grad: Any, at: int, place: int, has_grad_h_n: int) -> None:
        for s in range(S):
            grad[at + s] = zero
            if has_grad_h_n >> s & 1 != 0:
                grad[at + s] = up(tensors[first_grad + s][place])

    def end(tensors: Any, grad: Any, at: int, place: int) -> None:
        for s in range(S):
            tensors[first_end + s][place] = down(grad[at + s])

    made: tuple[Callable[..., Any], ...] = parameters, load, join, store, start, end
    return BackwardRows(*map(inlined, made))

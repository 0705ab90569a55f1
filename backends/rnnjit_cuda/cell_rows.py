"""Device functions by which the persistent kernels of any cell read and write a row's values.

Tensors are those of `cell_layout`. Behind them come, forward, w_hh and b_hh of both directions; and
backwards grad_y, w_hh of both directions, and the S of grad_h_n. All are contiguous.
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
        load: `(tensors, z, at, n, d, D, H, column, has_bias)`: what the accumulators are without
            h W_hh^T, to z[at] and on.
        join: `(given, z, at, sums)`: the accumulators, to given[0] and on, by the sum of each gate.
        store: `(tensors, found, n, d, D, H, column, keep)`: y, states and saved values.
        start: `(tensors, state, at, place)`: the initial states, to state[at] and on.
        end: `(tensors, state, at, place)`: h_n.
    """

    load: Callable[..., None]
    join: Callable[..., None]
    store: Callable[..., None]
    start: Callable[..., None]
    end: Callable[..., None]


class BackwardRows(NamedTuple):
    """What a backward kernel does with a row n, of one hidden unit (`column`).

    Attributes:
        load: `(tensors, given, at, n, n_before, linked, place, d, D, H, column, has_grad_y)`: what
            the gradient reads, to given[at] and on: of row n, of the row n_before of the previous
            step or, if not `linked`, of hx at `place`; and grad_y.
        store: `(tensors, found, n, d, D, H, column)`: dz.
        start: `(tensors, grad, at, place, has_grad_h_n)`: the S gradients of h_n, each zero if its
            bit of `has_grad_h_n` is.
        end: `(tensors, grad, at, place)`: grad_hx.
    """

    load: Callable[..., None]
    store: Callable[..., None]
    start: Callable[..., None]
    end: Callable[..., None]


def forward_tensors(element: Element, layout: CellLayout) -> Any:
    """The numba type of a forward kernel's tensors."""
    return types.UniTuple(types.CPointer(element.store), layout.first_more + 4)


def backward_tensors(element: Element, layout: CellLayout) -> Any:
    """The numba type of a backward kernel's tensors."""
    return types.UniTuple(types.CPointer(element.store), layout.first_more + 3 + layout.states)


def forward_rows(element: Element, layout: CellLayout) -> ForwardRows:
    """The device functions of forward kernels."""
    up, down, zero = element.up, element.down, element.real(0)
    G, A, S, K = layout.gates, layout.accumulators, layout.states, layout.saved
    inputs, hidden, first_saved = layout.inputs, layout.hidden, layout.first_saved
    first_hx, first_end, bias = layout.first_hx, layout.first_end, layout.first_more + 2

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
    ) -> None:
        place = (n * D + d) * G * H + column
        for a in range(A):
            z[at + a] = zero
            if inputs[a] >= 0:
                z[at + a] = up(tensors[0][place + inputs[a] * H])
            elif has_bias != 0:
                b_hh = tensors[bias] if d == 0 else tensors[bias + 1]
                z[at + a] = up(b_hh[hidden[a] * H + column])

    def join(given: Any, z: Any, at: int, sums: Any) -> None:
        for a in range(A):
            given[a] = z[at + a]
            if hidden[a] >= 0:
                given[a] += sums[hidden[a]]

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

    made: tuple[Callable[..., Any], ...] = load, join, store, start, end
    return ForwardRows(*map(inlined, made))


def backward_rows(element: Element, layout: CellLayout) -> BackwardRows:
    """The device functions of backward kernels."""
    up, down, zero = element.up, element.down, element.real(0)
    A, S, K, read = layout.accumulators, layout.states, layout.saved, layout.read
    after, before = layout.after or (0,), layout.before or (0,)
    afters, befores, blocks = len(layout.after), len(layout.before), layout.blocks
    first_saved, first_hx, first_end = layout.first_saved, layout.first_hx, layout.first_end
    grad_y, first_grad = layout.first_more, layout.first_more + 3

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
        given[at + read] = zero
        if has_grad_y != 0:
            given[at + read] = up(tensors[grad_y][place])

    def store(tensors: Any, found: Any, n: int, d: int, D: int, H: int, column: int) -> None:
        place = (n * D + d) * A * H + column
        for a in range(A):
            tensors[0][place + blocks[a] * H] = down(found[a])

    def start(tensors: Any, grad: Any, at: int, place: int, has_grad_h_n: int) -> None:
        for s in range(S):
            grad[at + s] = zero
            if has_grad_h_n >> s & 1 != 0:
                grad[at + s] = up(tensors[first_grad + s][place])

    def end(tensors: Any, grad: Any, at: int, place: int) -> None:
        for s in range(S):
            tensors[first_end + s][place] = down(grad[at + s])

    made: tuple[Callable[..., Any], ...] = load, store, start, end
    return BackwardRows(*map(inlined, made))

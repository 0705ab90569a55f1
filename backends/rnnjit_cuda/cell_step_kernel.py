"""The pointwise part of one time step of any cell; torch computes the matrix products.

    forward    out, s' = step(z + zh, s)
    backward   dz, ds = gradient(saved, s', s, grad_out, ds')

A thread owns a hidden unit; each of the n blocks in y takes every n-th row. Any grid is valid. The
caller owns all memory. Numbers of the tensors are those of `cell_layout`; K, S and A are its sizes.
"""

from __future__ import annotations

from typing import Any

from numba import cuda, types

from rnnjit_cuda.cell_layout import CellLayout, Y
from rnnjit_cuda.cells import Steps
from rnnjit_cuda.primitives import Element


def forward(
    element: Element, cell: Steps, layout: CellLayout, _rows: int
) -> tuple[Any, tuple[Any, ...]]:
    """The forward kernel and its signature.

    `kernel(tensors, rows, H, ld_z, ld_y, ld, keep, projected, ld_r)`, with the tensors

        z               [rows, ld_z]: x W_ih^T and biases, G*H columns
        y               [rows, ld_y]: written with out
        state 1 .. S-1  [rows, ld]: written with the new states if `keep` is not 0
        saved 0 .. K-1  [rows, ld]: written if `keep` is not 0
        hx 0 .. S-1     not read
        h_n 0 .. S-1    [rows, H]: the states, overwritten; not the first if `projected` is not 0
        zh              [rows, G*H]: h W_hh^T and biases; not read without a recurrent product
        parameters      P times [H]
        row inputs      [rows, ld_r]: R*H columns; if R > 0
    """
    real, up, down, step = element.real, element.up, element.down, cell.step
    A, S, K, G = layout.accumulators, layout.states, layout.saved, layout.gates
    given_size, found_size = layout.given, layout.found
    inputs, hidden, zero = layout.inputs, layout.hidden, element.real(0)
    first_saved, held, zh = layout.first_saved, layout.first_end, layout.first_more
    P, R, first_parameter = layout.parameters, layout.row_inputs, layout.first_more + 1
    # numba types the bodies of loops that never run: indices must be valid there, too.
    row_inputs = first_parameter + P if R else 0

    def kernel(
        tensors: Any,
        rows: int,
        H: int,
        ld_z: int,
        ld_y: int,
        ld: int,
        keep: int,
        projected: int,
        ld_r: int,
    ) -> None:
        column = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
        given = cuda.local.array(given_size, real)
        found = cuda.local.array(found_size, real)
        if column < H:
            for p in range(P):
                given[A + S + p] = up(tensors[first_parameter + p][column])
            for row in range(cuda.blockIdx.y, rows, cuda.gridDim.y):
                for r in range(R):
                    given[A + S + P + r] = up(tensors[row_inputs][row * ld_r + r * H + column])
                for a in range(A):
                    given[a] = zero
                    if inputs[a] >= 0:
                        given[a] += up(tensors[0][row * ld_z + inputs[a] * H + column])
                    if hidden[a] >= 0:
                        given[a] += up(tensors[zh][(row * G + hidden[a]) * H + column])
                for s in range(S):
                    given[A + s] = zero
                    if s > 0 or projected == 0:
                        given[A + s] = up(tensors[held + s][row * H + column])
                step(given, found)
                tensors[Y][row * ld_y + column] = down(found[0])
                for s in range(S):
                    if s > 0 or projected == 0:
                        tensors[held + s][row * H + column] = down(found[1 + s])
                    if s > 0 and keep != 0:
                        tensors[Y + s][row * ld + column] = down(found[1 + s])
                if keep != 0:
                    for k in range(K):
                        at = row * ld + column
                        tensors[first_saved + k][at] = down(found[1 + S + k])

    data = types.CPointer(element.store)
    count = layout.first_more + 1 + P + (R > 0)
    return kernel, (types.UniTuple(data, count), *[types.int64] * 8)


def backward(
    element: Element, cell: Steps, layout: CellLayout, _rows: int
) -> tuple[Any, tuple[Any, ...]]:
    """The backward kernel and its signature.

    `kernel(tensors, rows, linked, H, ld_dz, ld_grad, ld, has_grad, projected, ld_r, ld_dp, ld_dr)`,
    with the tensors

        dz              [rows, ld_dz]: written, A blocks of H columns
        y               [rows, ld]: out of the forward pass
        state 1 .. S-1  [rows, ld]: the states after the step
        saved 0 .. K-1  [rows, ld]
        hx 0 .. S-1     [rows, H]: the states before the step, from row `linked` on
        grad_hx         [rows, H]: S gradients of the states after the step, overwritten with those
                        of the states before, without the part through W_hh; not the first if
                        `projected` is not 0
        grad_out        [rows, ld_grad]: counts as zero, and is not read, if `has_grad` is 0
        before 0 .. S-1 [linked, ld]: the states before the step
        parameters      P times [H]
        row inputs      [rows, ld_r]: R*H columns; if R > 0
        of parameters   [rows, ld_dp]: their gradients by each row, P*H columns; if P > 0
        of row inputs   [rows, ld_dr]: their gradients, R*H columns; if R > 0

    The last two are written, but not if `ld_dp` or `ld_dr` is 0.
    """
    real, up, down, gradient = element.real, element.up, element.down, cell.gradient
    A, S, K, zero = layout.accumulators, layout.states, layout.saved, element.real(0)
    after, before = layout.after or (0,), layout.before or (0,)
    afters, befores, read = len(layout.after), len(layout.before), layout.read
    given_size, found_size, blocks = layout.gradients, layout.found_back, layout.blocks
    first_saved, first_hx = layout.first_saved, layout.first_hx
    held, grad_out, first_before = layout.first_end, layout.first_more, layout.first_more + 1
    P, R, first_parameter = layout.parameters, layout.row_inputs, first_before + S
    row_inputs = first_parameter + P if R else 0
    of_parameters = first_parameter + P + (R > 0) if P else 0
    of_row_inputs = first_parameter + P + 1 + (P > 0) if R else 0
    parameters_read, parameters_at = layout.parameters_read or (0,), read + 1 + S
    row_inputs_read, rows_at = layout.row_inputs_read or (0,), K + afters + befores
    count_parameters, count_rows = len(layout.parameters_read), len(layout.row_inputs_read)

    def kernel(
        tensors: Any,
        rows: int,
        linked: int,
        H: int,
        ld_dz: int,
        ld_grad: int,
        ld: int,
        has_grad: int,
        projected: int,
        ld_r: int,
        ld_dp: int,
        ld_dr: int,
    ) -> None:
        column = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
        given = cuda.local.array(given_size, real)
        found = cuda.local.array(found_size, real)
        if column < H:
            for p in range(count_parameters):
                of_unit = up(tensors[first_parameter + parameters_read[p]][column])
                given[parameters_at + p] = of_unit
            for row in range(cuda.blockIdx.y, rows, cuda.gridDim.y):
                at, own = row * ld + column, row * H + column
                for k in range(K):
                    given[k] = up(tensors[first_saved + k][at])
                for i in range(afters):
                    given[K + i] = up(tensors[Y + after[i]][at])
                for i in range(befores):
                    if row < linked:
                        given[K + afters + i] = up(tensors[first_before + before[i]][at])
                    else:
                        given[K + afters + i] = up(tensors[first_hx + before[i]][own])
                for r in range(count_rows):
                    place = row * ld_r + row_inputs_read[r] * H + column
                    given[rows_at + r] = up(tensors[row_inputs][place])
                given[read] = zero
                if has_grad != 0:
                    given[read] = up(tensors[grad_out][row * ld_grad + column])
                for s in range(S):
                    given[read + 1 + s] = zero
                    if s > 0 or projected == 0:
                        given[read + 1 + s] = up(tensors[held + s][own])
                gradient(given, found)
                for a in range(A):
                    tensors[0][row * ld_dz + blocks[a] * H + column] = down(found[a])
                for s in range(S):
                    if s > 0 or projected == 0:
                        tensors[held + s][own] = down(found[A + s])
                for p in range(P):
                    if ld_dp != 0:
                        place = row * ld_dp + p * H + column
                        tensors[of_parameters][place] = down(found[A + S + p])
                for r in range(R):
                    if ld_dr != 0:
                        place = row * ld_dr + r * H + column
                        tensors[of_row_inputs][place] = down(found[A + S + P + r])

    data = types.CPointer(element.store)
    count = layout.first_more + 1 + S + P + (P > 0) + 2 * (R > 0)
    return kernel, (types.UniTuple(data, count), *[types.int64] * 11)

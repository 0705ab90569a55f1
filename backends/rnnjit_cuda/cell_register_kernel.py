"""The kernels of any cell for the smallest layers: a block has W_hh in its threads' registers.

    forward    out, s_t = step(z_t + W_hh h_{t-1}, s_{t-1})
    backward   dz_t, ds = gradient(..., ds),   dh += dz_t W_hh

After Diamos et al. 2016, "Persistent RNNs: Stashing Recurrent Weights On-Chip". A block owns one
sequence of one direction and all H hidden units, with one barrier a step. Launch blocks (B, D) of
`CELL_LANES` threads for each hidden unit.

The lanes of a unit are adjacent in a warp. Lane s holds, for each of the G gates, the weights of
every k with k // 4 % CELL_LANES = s, `reach` in all, so that H <= CELL_LANES * reach: of row k of
W_hh backwards, of column k forward. A step has G sums for each unit over the H numbers of h or,
backwards, one sum over the G * H numbers of dz. Shuffles add up the lanes' parts. Then each lane
computes the cell, and the first one writes.

Dynamic shared memory, with zeros from unit H on:

    reals   [2][CELL_LANES * reach]      forward: h_{t-1}; two buffers in alternation
    reals   [2][G][CELL_LANES * reach]   backward: dz_t, those of zh

Global memory as in `cell_rows`. A step's loads from it are issued one step before.
"""

from __future__ import annotations

from typing import Any

from numba import cuda, types

from rnnjit_cuda.cell_layout import CellLayout
from rnnjit_cuda.cell_rows import backward_rows, backward_tensors, forward_rows, forward_tensors
from rnnjit_cuda.cells import Steps
from rnnjit_cuda.kernels import CELL_LANES
from rnnjit_cuda.primitives import Element, inlined, load, small
from rnnjit_cuda.register_kernel import place_of, steps_of

_EVERYONE = 0xFFFFFFFF
_STAGES = CELL_LANES.bit_length() - 1


def forward(
    element: Element, cell: Steps, layout: CellLayout, reach: int
) -> tuple[Any, tuple[Any, ...]]:
    """The forward kernel and its signature.

    `kernel(tensors, offsets, T, B, H, packed, keep, has_bias, ld_r)`: y and h_n are written, states
    and saved values if `keep` is not 0; b_hh is not read if `has_bias` is 0. Direction 1 walks from
    the last step to the first.
    """
    real, zero, wide, step_of = element.real, element.real(0), CELL_LANES * reach, cell.step
    G, A, S, loaded = layout.gates, layout.accumulators, layout.states, layout.loaded
    given_size, found_size, held = layout.given, layout.found, G * reach
    rows, w_hh = forward_rows(element, layout), layout.first_more
    parameters, load_z, join, store, start, end = rows
    take, multiply = _taking(element, G, reach, True), _multiplying_gates(element, G, reach)

    def kernel(
        tensors: Any,
        offsets: Any,
        T: int,
        B: int,
        H: int,
        packed: int,
        keep: int,
        has_bias: int,
        ld_r: int,
    ) -> None:
        x = cuda.shared.array(0, real, alignment=16)
        lane, column = cuda.threadIdx.x % CELL_LANES, cuda.threadIdx.x // CELL_LANES
        row, d, D = cuda.blockIdx.x, cuda.blockIdx.y, cuda.gridDim.y
        weights = cuda.local.array(held, real)
        sums = cuda.local.array(G, real)
        ahead = cuda.local.array(loaded, real)
        z = cuda.local.array(loaded, real)
        given = cuda.local.array(given_size, real)
        found = cuda.local.array(found_size, real)
        take(weights, tensors[w_hh] if d == 0 else tensors[w_hh + 1], H, column, lane)
        for e in range(cuda.threadIdx.x, 2 * wide, cuda.blockDim.x):
            x[e] = zero
        cuda.syncthreads()
        own, onward, at = column < H, d == 0, (d * B + row) * H + column
        for s in range(given_size):
            given[s] = zero
        length = small(steps_of(offsets, row, T, packed))
        if own:
            parameters(tensors, given, d, column)
            start(tensors, given, A, at)
            if lane == 0:
                x[column] = given[A]
            n = place_of(offsets, 0, length, B, row, packed, onward)
            load_z(tensors, ahead, 0, n, d, D, H, column, has_bias, ld_r)
        cuda.syncthreads()
        step, turn = small(0), small(0)
        while step < length:
            for v in range(loaded):
                z[v] = ahead[v]
            n = place_of(offsets, step, length, B, row, packed, onward)
            if own and step + 1 < length:
                n_next = place_of(offsets, step + 1, length, B, row, packed, onward)
                load_z(tensors, ahead, 0, n_next, d, D, H, column, has_bias, ld_r)
            multiply(sums, x, turn, weights, lane)
            join(given, z, 0, sums)
            step_of(given, found)
            for s in range(S):
                given[A + s] = found[1 + s]
            turn = small(wide - turn)
            if own and lane == 0:
                x[turn + column] = found[1]
                store(tensors, found, n, d, D, H, column, keep)
            cuda.syncthreads()
            step = small(step + 1)
        if own and lane == 0:
            end(tensors, given, A, at)

    integer = types.int64
    data = forward_tensors(element, layout)
    return kernel, (data, types.CPointer(integer), *[integer] * 7)


def backward(
    element: Element, cell: Steps, layout: CellLayout, reach: int
) -> tuple[Any, tuple[Any, ...]]:
    """The backward kernel and its signature.

    `kernel(tensors, offsets, T, B, H, packed, has_grad_y, has_grad_h_n, ld_r, ld_dp, ld_dr)`: dz,
    grad_hx and the gradients of parameters and row inputs are written. grad_y counts as zero, and
    is not read, if its flag is 0, and so does the gradient of a last state whose bit of
    `has_grad_h_n` is 0. Direction 0 walks from the last step to the first.
    """
    real, zero, wide, gradient = element.real, element.real(0), CELL_LANES * reach, cell.gradient
    G, A, S, hidden = layout.gates, layout.accumulators, layout.states, layout.hidden
    each, held, both = layout.ahead, G * reach, 2 * G * wide
    given_size, found_size, w_hh = layout.gradients, layout.found_back, layout.first_more + 1
    parameters, load_row, join, store, start, end = backward_rows(element, layout)
    take, multiply = _taking(element, G, reach, False), _multiplying(element, G, reach)

    def kernel(
        tensors: Any,
        offsets: Any,
        T: int,
        B: int,
        H: int,
        packed: int,
        has_grad_y: int,
        has_grad_h_n: int,
        ld_r: int,
        ld_dp: int,
        ld_dr: int,
    ) -> None:
        x = cuda.shared.array(0, real, alignment=16)
        lane, column = cuda.threadIdx.x % CELL_LANES, cuda.threadIdx.x // CELL_LANES
        row, d, D = cuda.blockIdx.x, cuda.blockIdx.y, cuda.gridDim.y
        weights = cuda.local.array(held, real)
        ahead = cuda.local.array(given_size, real)
        given = cuda.local.array(given_size, real)
        found = cuda.local.array(found_size, real)
        take(weights, tensors[w_hh] if d == 0 else tensors[w_hh + 1], H, column, lane)
        for e in range(cuda.threadIdx.x, both, cuda.blockDim.x):
            x[e] = zero
        own, onward, at = column < H, d == 1, (d * B + row) * H + column
        for v in range(given_size):
            ahead[v], given[v] = zero, zero
        length = small(steps_of(offsets, row, T, packed))
        n = place_of(offsets, 0, length, B, row, packed, onward)
        n_next = n
        if length > 1:
            n_next = place_of(offsets, 1, length, B, row, packed, onward)
        if own:
            parameters(tensors, given, d, column)
            start(tensors, given, each, at, has_grad_h_n)
            linked = length > 1
            load_row(tensors, ahead, 0, n, n_next, linked, at, d, D, H, column, has_grad_y, ld_r)
        cuda.syncthreads()
        step, turn = small(0), small(0)
        while step < length:
            for v in range(each):
                given[v] = ahead[v]
            n_last = n_next
            if step + 2 < length:
                n_last = place_of(offsets, step + 2, length, B, row, packed, onward)
            if own and step + 1 < length:
                linked = step + 2 < length
                load_row(
                    tensors, ahead, 0, n_next, n_last, linked, at, d, D, H, column, has_grad_y, ld_r
                )
            join(given)
            gradient(given, found)
            if own and lane == 0:
                for a in range(A):
                    if hidden[a] >= 0:
                        x[turn + hidden[a] * wide + column] = found[a]
                store(tensors, found, n, d, D, H, column, ld_dp, ld_dr)
            cuda.syncthreads()
            for s in range(S):
                given[each + s] = found[A + s]
            given[each] += multiply(x, turn, weights, lane)
            turn, step = small(G * wide - turn), small(step + 1)
            n, n_next = n_next, n_last
        if own and lane == 0:
            end(tensors, given, each, at)

    integer = types.int64
    data = backward_tensors(element, layout)
    return kernel, (data, types.CPointer(integer), *[integer] * 9)


def _taking(element: Element, gates: int, reach: int, transposed: bool) -> Any:
    """Build `take(weights, w, H, column, lane)`, by which a thread copies its weights.

    They are w[g*H + column, k] if `transposed`, else w[g*H + k, column], zero from H on.
    """
    up, zero = element.up, element.real(0)

    def take(weights: Any, w: Any, H: int, column: int, lane: int) -> None:
        for g in range(gates):
            for i in range(reach):
                k = (i // 4 * CELL_LANES + lane) * 4 + i % 4
                weights[g * reach + i] = zero
                if k < H and column < H:
                    at = (g * H + column) * H + k if transposed else (g * H + k) * H + column
                    weights[g * reach + i] = up(w[at])

    return inlined(take)


def _multiplying_gates(element: Element, gates: int, reach: int) -> Any:
    """Build `multiply(sums, x, x_at, weights, lane)`: a unit's sum of each gate, in all its lanes.

    All threads of a warp must take part.
    """
    real, width, zero = element.real, element.width, element.real(0)

    def multiply(sums: Any, x: Any, x_at: int, weights: Any, lane: int) -> None:
        v = cuda.local.array(4, real)
        for g in range(gates):
            sums[g] = zero
        for i in range(reach // 4):
            for q in range(0, 4, width):
                load(v, q, x, x_at + (i * CELL_LANES + lane) * 4 + q)
            for g in range(gates):
                for p in range(4):
                    sums[g] += v[p] * weights[g * reach + i * 4 + p]
        for stage in range(_STAGES):
            for g in range(gates):
                sums[g] += cuda.shfl_xor_sync(_EVERYONE, sums[g], 1 << stage)

    return inlined(multiply)


def _multiplying(element: Element, gates: int, reach: int) -> Any:
    """Build `multiply(x, x_at, weights, lane)`: a unit's sum over all gates, in all its lanes.

    All threads of a warp must take part.
    """
    real, width, zero, wide = element.real, element.width, element.real(0), CELL_LANES * reach

    def multiply(x: Any, x_at: int, weights: Any, lane: int) -> Any:
        v = cuda.local.array(4, real)
        sums = cuda.local.array(4, real)
        for p in range(4):
            sums[p] = zero
        for g in range(gates):
            for i in range(reach // 4):
                for q in range(0, 4, width):
                    load(v, q, x, x_at + g * wide + (i * CELL_LANES + lane) * 4 + q)
                for p in range(4):
                    sums[p] += v[p] * weights[g * reach + i * 4 + p]
        total = (sums[0] + sums[1]) + (sums[2] + sums[3])
        for stage in range(_STAGES):
            total += cuda.shfl_xor_sync(_EVERYONE, total, 1 << stage)
        return total

    return inlined(multiply)

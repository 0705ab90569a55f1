"""The grid-wide kernels of any cell: one launch for all steps, with a grid barrier in each.

    forward    out, s_t = step(z_t + W_hh h_{t-1}, s_{t-1})
    backward   dz_t, ds = gradient(..., ds),   dh += dz_t W_hh

After Diamos et al. 2016, "Persistent RNNs: Stashing Recurrent Weights On-Chip": a block owns
`columns` hidden units of `slab` sequences in one direction, and keeps their part of W_hh in shared
memory for all steps, or ("stream") reads it in each step if shared memory is too small. Blocks
exchange h or, backwards, dz through global memory, as in `grid_kernel`. Launch blocks
(ceil(H / columns), D, ceil(B / slab)) cooperatively, since those of a slab and direction wait for
each other; `columns` is a multiple of `kernels.column_tile`, `slab` of `rows`.

Dynamic shared memory, with Hp = `padded(H)`; forward a unit has G sums over one gate each, backward
one sum over G gates (`kernels.sums_of`):

    reals    [2][teams][splits][groups][rows * tile]   parts of the sums over k
    stored   [G][columns][spread(Hp)]                  M[g][c][k] = W_hh[g*H + j][k] (forward) or
                                                       W_hh[g*H + k][j] (backward), where j is the
                                                       block's unit c; not for "stream"

A warp of a team computes `tile` sums of `rows` sequences over one of the `splits` ranges of k; its
lanes read adjacent vectors along k. Shuffles add up the lanes. One thread for each unit and
sequence adds up the splits and computes the cell. There are `groups = sums * columns / tile`, and
`groups * splits` warps in a team.

Global memory as in `cell_rows`, and two more buffers, which the caller owns: `exchange`, reals
`[2, slabs, D, slab, gates, Hp]` and then `[slabs, D, slab, S, Hp]`, uninitialised, aligned to 16
bytes; and `counters`, int64 `[slabs, D, COUNTER_STRIDE]`, zero at launch. A thread keeps the states
of its units, or their gradients, in the second part of `exchange`. For "stream", each w_hh is M of
all units, `[G, x * columns, Hp]` for x blocks, zero from row and column H on, aligned to 16 bytes.
"""

from __future__ import annotations

from typing import Any

from numba import cuda, types

from rnnjit_cuda.cell_layout import CellLayout
from rnnjit_cuda.cell_rows import backward_rows, backward_tensors, forward_rows, forward_tensors
from rnnjit_cuda.cells import Steps
from rnnjit_cuda.common import bounds, filling, padded, spread
from rnnjit_cuda.grid_sync import adding, folding, grid_barrier, sharing
from rnnjit_cuda.kernels import Sums, tile_columns
from rnnjit_cuda.primitives import Element, inlined, load, small


def forward(
    element: Element, cell: Steps, layout: CellLayout, rows: int, resident: bool = True
) -> tuple[Any, tuple[Any, ...]]:
    """The forward kernel and its signature.

    `kernel(tensors, exchange, counters, offsets, T, B, H, columns, splits, slab, packed, keep,
    has_bias, ld_r)`: y and h_n are written, states and saved values if `keep` is not 0; b_hh is not
    read if `has_bias` is 0. Direction 1 walks from the last step to the first.
    """
    real, up, zero, step_of = element.real, element.up, element.real(0), cell.step
    tile = tile_columns(rows, element.width)
    ratio = element.real.bitwidth // element.store.bitwidth
    G, A, S, loaded = layout.gates, layout.accumulators, layout.states, layout.loaded
    given_size, found_size = layout.given, layout.found
    w_hh, first_hx = layout.first_more, layout.first_hx
    parameters, load_z, join, keep_row, _, end_of = forward_rows(element, layout)
    hold, place_of = _holding(element, G, False, resident), _placing(resident)
    multiply, add_up = _multiplying(element, rows, Sums(G, 1), resident), adding(element)
    share_work = sharing(tile)

    def kernel(
        tensors: Any,
        exchange: Any,
        counters: Any,
        offsets: Any,
        T: int,
        B: int,
        H: int,
        columns: int,
        splits: int,
        slab: int,
        packed: int,
        keep: int,
        has_bias: int,
        ld_r: int,
    ) -> None:
        parts = cuda.shared.array(0, real, alignment=16)
        ahead = cuda.local.array(loaded, real)
        z = cuda.local.array(loaded, real)
        sums = cuda.local.array(G, real)
        given = cuda.local.array(given_size, real)
        found = cuda.local.array(found_size, real)
        thread, threads = cuda.threadIdx.x, cuda.blockDim.x
        d, D, low = cuda.blockIdx.y, cuda.gridDim.y, cuda.blockIdx.x * columns
        across, units, first = padded(H), columns * rows, cuda.blockIdx.z * slab
        teams, team, split, group, place = share_work(G * columns, splits)
        half = small(teams * splits * G * units)
        weights = hold(
            tensors[w_hh] if d == 0 else tensors[w_hh + 1], 2 * half * ratio, H, low, columns
        )
        own_at = place_of(2 * half * ratio, low, group * tile, columns, across)
        here = cuda.blockIdx.z * D + d
        buffers = cuda.gridDim.z * D * slab * across
        source, target = here * slab * across, buffers + here * slab * across
        held = 2 * buffers + here * slab * S * across
        own = small(min(slab, B - first))
        # In both buffers: in direction 1, sequences that begin later than others read either one.
        for e in range(thread, own * columns, threads):
            b, j = e // columns, low + e % columns
            if j < across:
                h = up(tensors[first_hx][(d * B + first + b) * H + j]) if j < H else zero
                exchange[source + b * across + j] = h
                exchange[target + b * across + j] = h
                for s in range(1, S):
                    if j < H:
                        value = up(tensors[first_hx + s][(d * B + first + b) * H + j])
                        exchange[held + (b * S + s) * across + j] = value
        ours, parts_at = small(team * rows), small(team * splits * G * units + place)
        row = small(ours + place % (rows * tile) // tile)
        column = small(low + place // (rows * tile) * tile + place % tile)
        last = small(own if place < units and column < H else 0)
        if column < H:
            parameters(tensors, given, d, column)
        step = 0
        start, size = bounds(offsets, step, T, B, packed, d == 0)
        while size <= first and step < T:
            step += 1
            start, size = bounds(offsets, step, T, B, packed, d == 0)
        turn, barriers = 0, 0
        # Of the slab: its first row, and how many there are.
        start, size = small(start + first), small(min(size - first, own))
        if row < min(size, last):
            load_z(tensors, ahead, 0, start + row, d, D, H, column, has_bias, ld_r)
        while size > 0:
            barriers = small(barriers + 1)
            grid_barrier(counters, barriers)
            step = small(step + 1)
            start_next, size_next = bounds(offsets, step, T, B, packed, d == 0)
            start_next = small(start_next + first)
            size_next = small(max(0, min(size_next - first, own)))
            top = small(0)
            while top < size:
                b = small(top + row)
                for v in range(loaded):
                    z[v] = ahead[v]
                # The load for the next tiles overlaps with the product of these.
                next_row, start_ahead, size_ahead = b + teams * rows, start, size
                if top + teams * rows >= size:
                    next_row, start_ahead, size_ahead = row, start_next, size_next
                if next_row < min(size_ahead, last):
                    load_z(
                        tensors, ahead, 0, start_ahead + next_row, d, D, H, column, has_bias, ld_r
                    )
                if top + ours < size:
                    multiply(
                        parts,
                        turn,
                        exchange,
                        source + (top + ours) * across,
                        weights,
                        own_at,
                        columns,
                        across,
                        split,
                        splits,
                    )
                cuda.syncthreads()
                if b < min(size, last):
                    for g in range(G):
                        sums[g] = add_up(parts, turn + parts_at + g * units, G * units, splits)
                    join(given, z, 0, sums)
                    given[A] = exchange[source + b * across + column]
                    for s in range(1, S):
                        given[A + s] = exchange[held + (b * S + s) * across + column]
                    step_of(given, found)
                    exchange[target + b * across + column] = found[1]
                    for s in range(1, S):
                        exchange[held + (b * S + s) * across + column] = found[1 + s]
                    keep_row(tensors, found, start + b, d, D, H, column, keep)
                    if b >= size_next:
                        end_of(tensors, found, 1, (d * B + first + b) * H + column)
                turn, top = small(half - turn), small(top + teams * rows)
            start, size = start_next, size_next
            source, target = target, source

    return kernel, (forward_tensors(element, layout), *_signature(element, 10))


def backward(
    element: Element, cell: Steps, layout: CellLayout, rows: int, resident: bool = True
) -> tuple[Any, tuple[Any, ...]]:
    """The backward kernel and its signature.

    `kernel(tensors, exchange, counters, offsets, T, B, H, columns, splits, slab, packed,
    has_grad_y, has_grad_h_n, ld_r, ld_dp, ld_dr)`: dz, grad_hx and the gradients of parameters and
    row inputs are written. grad_y counts as zero, and is not read, if its flag is 0, and so does
    the gradient of a last state whose bit of `has_grad_h_n` is 0. Direction 0 walks from the last
    step to the first.

    A step's product is a part of the gradient that the next step of the walk starts from. The same
    thread uses it, and so it is not stored.
    """
    real, zero, gradient = element.real, element.real(0), cell.gradient
    tile = tile_columns(rows, element.width)
    ratio = element.real.bitwidth // element.store.bitwidth
    G, A, S, hidden = layout.gates, layout.accumulators, layout.states, layout.hidden
    given_size, found_size, each = layout.gradients, layout.found_back, layout.ahead
    w_hh = layout.first_more + 1
    parameters, load_row, join, keep_row, start_of, end_of = backward_rows(element, layout)
    hold, place_of = _holding(element, G, True, resident), _placing(resident)
    multiply, add_up = _multiplying(element, rows, Sums(1, G), resident), adding(element)
    share_work = sharing(tile)

    def kernel(
        tensors: Any,
        exchange: Any,
        counters: Any,
        offsets: Any,
        T: int,
        B: int,
        H: int,
        columns: int,
        splits: int,
        slab: int,
        packed: int,
        has_grad_y: int,
        has_grad_h_n: int,
        ld_r: int,
        ld_dp: int,
        ld_dr: int,
    ) -> None:
        parts = cuda.shared.array(0, real, alignment=16)
        ahead = cuda.local.array(each, real)
        given = cuda.local.array(given_size, real)
        found = cuda.local.array(found_size, real)
        grad = cuda.local.array(S, real)
        thread, threads = cuda.threadIdx.x, cuda.blockDim.x
        d, D, low = cuda.blockIdx.y, cuda.gridDim.y, cuda.blockIdx.x * columns
        across, units, first = padded(H), columns * rows, cuda.blockIdx.z * slab
        teams, team, split, group, place = share_work(columns, splits)
        half = small(teams * splits * units)
        weights = hold(
            tensors[w_hh] if d == 0 else tensors[w_hh + 1], 2 * half * ratio, H, low, columns
        )
        own_at = place_of(2 * half * ratio, low, group * tile, columns, across)
        here = cuda.blockIdx.z * D + d
        buffers = cuda.gridDim.z * D * slab * G * across
        source, target = here * slab * G * across, buffers + here * slab * G * across
        held = 2 * buffers + here * slab * S * across
        own = small(min(slab, B - first))
        # Weights from unit H on are zero, and dz must be too: 0 * NaN is NaN.
        for e in range(thread, own * columns, threads):
            b, j = e // columns, low + e % columns
            if j >= H and j < across:
                for g in range(G):
                    exchange[source + (b * G + g) * across + j] = zero
                    exchange[target + (b * G + g) * across + j] = zero
        ours, parts_at = small(team * rows), small(team * splits * units + place)
        row = small(ours + place % (rows * tile) // tile)
        column = small(low + place // (rows * tile) * tile + place % tile)
        last = small(own if place < units and column < H else 0)
        if column < H:
            parameters(tensors, given, d, column)
        step = 0
        start, size = bounds(offsets, step, T, B, packed, d == 1)
        while size <= first and step < T:
            step += 1
            start, size = bounds(offsets, step, T, B, packed, d == 1)
        turn, done, barriers = 0, 0, 0
        # Of the slab: its first row, and how many there are.
        start, size = small(start + first), small(min(size - first, own))
        start_next, size_next = bounds(offsets, step + 1, T, B, packed, d == 1)
        start_next = small(start_next + first)
        size_next = small(max(0, min(size_next - first, own)))
        if row < min(size, last):
            n, former, linked = start + row, start_next + row, row < size_next
            at = (d * B + first + row) * H + column
            load_row(tensors, ahead, 0, n, former, linked, at, d, D, H, column, has_grad_y, ld_r)
        # This step of the walk has `size` rows, the previous one had `done`.
        while size > 0 or done > 0:
            if barriers > 0:
                grid_barrier(counters, barriers)
            barriers, step = small(barriers + 1), small(step + 1)
            start_last, size_last = bounds(offsets, step + 1, T, B, packed, d == 1)
            start_last = small(start_last + first)
            size_last = small(max(0, min(size_last - first, own)))
            top = small(0)
            while top < max(size, done):
                b = small(top + row)
                for v in range(each):
                    given[v] = ahead[v]
                # The loads for the next tiles overlap with the product of these.
                next_row, start_ahead, size_ahead = b + teams * rows, start, size
                start_former, size_former = start_next, size_next
                if top + teams * rows >= max(size, done):
                    next_row, start_ahead, size_ahead = row, start_next, size_next
                    start_former, size_former = start_last, size_last
                if next_row < min(size_ahead, last):
                    n, former = start_ahead + next_row, start_former + next_row
                    linked, at = next_row < size_former, (d * B + first + next_row) * H + column
                    load_row(
                        tensors, ahead, 0, n, former, linked, at, d, D, H, column, has_grad_y, ld_r
                    )
                at = (d * B + first + b) * H + column
                if top < done:
                    if top + ours < done:
                        multiply(
                            parts,
                            turn,
                            exchange,
                            source + (top + ours) * G * across,
                            weights,
                            own_at,
                            columns,
                            across,
                            split,
                            splits,
                        )
                    cuda.syncthreads()
                    if b < min(done, last):
                        for s in range(S):
                            grad[s] = exchange[held + (b * S + s) * across + column]
                        grad[0] += add_up(parts, turn + parts_at, units, splits)
                    turn = small(half - turn)
                if done <= b and b < min(size, last):
                    start_of(tensors, grad, 0, at, has_grad_h_n)
                if b < min(size, last):
                    for s in range(S):
                        given[each + s] = grad[s]
                    join(given)
                    gradient(given, found)
                    for a in range(A):
                        if hidden[a] >= 0:
                            exchange[target + (b * G + hidden[a]) * across + column] = found[a]
                    for s in range(S):
                        exchange[held + (b * S + s) * across + column] = found[A + s]
                    keep_row(tensors, found, start + b, d, D, H, column, ld_dp, ld_dr)
                elif b < min(done, last):
                    end_of(tensors, grad, 0, at)
                top = small(top + teams * rows)
            done, start, size = size, start_next, size_next
            start_next, size_next = start_last, size_last
            source, target = target, source

    return kernel, (backward_tensors(element, layout), *_signature(element, 12))


def _signature(element: Element, count: int) -> tuple[Any, ...]:
    """The numba types of the arguments behind the tensors, the last `count` of them integers."""
    integers = types.CPointer(types.int64)
    return types.CPointer(element.real), integers, integers, *[types.int64] * count


def _holding(element: Element, gates: int, transposed: bool, resident: bool) -> Any:
    """Build `hold(w, at, H, first, columns)`: the memory of M, which is shared if `resident`."""
    fill, stored = filling(element, transposed), element.store

    def keep(w: Any, at: int, H: int, first: int, columns: int) -> Any:
        weights = cuda.shared.array(0, stored, alignment=16)
        block = columns * spread(padded(H))
        for g in range(gates):
            fill(weights, at + g * block, w, g * H * H, H, first, columns)
        return weights

    def leave(w: Any, at: int, H: int, first: int, columns: int) -> Any:
        return w

    return inlined(keep if resident else leave)


def _placing(resident: bool) -> Any:
    """Build `place_of(at, low, sum_, columns, across)`: the index in M of a sum of the block.

    Sums are numbered gate by gate, `columns` for each.
    """

    def own(at: Any, low: Any, sum_: Any, columns: Any, across: Any) -> Any:
        return at + sum_ * spread(across)

    def whole(at: Any, low: Any, sum_: Any, columns: Any, across: Any) -> Any:
        gate = sum_ // columns
        return (gate * cuda.gridDim.x * columns + low + sum_ - gate * columns) * across

    return inlined(own if resident else whole)


def _multiplying(element: Element, rows: int, sums_each: Sums, resident: bool) -> Any:
    """Build the function by which a warp writes its parts of the sums.

    `multiply(parts, turn, exchange, x_at, weights, own_at, columns, across, split, splits)` writes
    sum_k x[i][k] M[c][k] over the warp's split of k, of all gates of a sum, to `parts` from `turn`
    on, of `rows` rows of x at `exchange[x_at]` and the `tile` rows of M that begin at
    `weights[own_at]`. A lane reads a vector of each at a time.
    """
    real, width, load_weights = element.real, element.width, element.load
    zero, gates = element.real(0), sums_each.gates
    tile = tile_columns(rows, width)
    count, loaded = rows * tile, rows * width
    fold_16, fold_8, fold_4, fold_2, fold_1 = (folding(count, s) for s in range(5))

    def multiply(
        parts: Any,
        turn: int,
        exchange: Any,
        x_at: int,
        weights: Any,
        own_at: int,
        columns: int,
        across: int,
        split: int,
        splits: int,
    ) -> None:
        lane, warp = cuda.threadIdx.x % 32, cuda.threadIdx.x // 32
        between = spread(across) if resident else across
        block = columns * between if resident else cuda.gridDim.x * columns * between
        sums = cuda.local.array(count, real)
        x = cuda.local.array(loaded, real)
        w = cuda.local.array(width, real)
        for m in range(count):
            sums[m] = zero
        gate = small(0)
        while gate < gates:
            k = small((split * 32 + lane) * width)
            x_gate, w_gate = x_at + gate * across, own_at + gate * block
            # Not `range`, which would divide if its step is not a constant.
            while k < across:
                for i in range(rows):
                    load(x, i * width, exchange, x_gate + i * gates * across + k)
                for c in range(tile):
                    load_weights(w, 0, weights, w_gate + c * between + k)
                    for i in range(rows):
                        for p in range(width):
                            sums[i * tile + c] += x[i * width + p] * w[p]
                k = small(k + splits * 32 * width)
            gate = small(gate + 1)
        fold_16(sums, lane)
        fold_8(sums, lane)
        fold_4(sums, lane)
        fold_2(sums, lane)
        fold_1(sums, lane)
        if lane % (32 // count) == 0:
            parts[turn + warp * count + lane * count // 32] = sums[0]

    return inlined(multiply)

"""The kernels for the smallest layers: a block has all of W_hh in its threads' registers.

    forward    h_t = activation(z_t + W_hh h_{t-1})
    backward   dz_t = (g_t + grad_y_t) activation'(y_t),   g_{t-1} = dz_t W_hh

After Diamos et al. 2016, "Persistent RNNs: Stashing Recurrent Weights On-Chip": the weights stay on
the chip for all steps. A block owns one sequence of one direction and all H hidden units, so that
it runs its time loop alone, with one barrier a step. Launch blocks (B, D) of `LANES` threads for
each hidden unit.

Each step computes sum_k x[k] M[k][j], with M[k][j] = W_hh[j][k] (forward) or W_hh[k][j] (backward).
The `LANES` threads of column j are adjacent lanes of a warp. Lane s holds M[k][j] for every k with
k // 4 % LANES = s, `reach` values in all, so that H <= LANES * reach. Shuffles add up the lanes'
sums. Then each lane has the total and does the pointwise part, and the first one writes the result.

Dynamic shared memory, with zeros from column H on:

    reals   [2][LANES * reach]   x: h_{t-1} (forward) or dz_t (backward); two buffers in alternation

Global memory as in `block_kernel`. A step's loads from it are issued `AHEAD` steps before.
"""

from __future__ import annotations

from typing import Any

from numba import cuda, types

from rnnjit_cuda.cells import Pointwise
from rnnjit_cuda.kernels import LANES, REACHES
from rnnjit_cuda.primitives import Element, inlined, load, prefetch, small

#: A step takes a few hundred cycles, and a load from the L2 cache as many. More steps gain nothing:
#: a thread that waits for one load waits for all that are in flight.
AHEAD = 2
#: Steps between a prefetch into the L2 cache and its load, and elements of y from which on there
#: are prefetches: a smaller y may still be in the cache. With the largest reach, steps take so long
#: that prefetching does not pay.
DEEP, FAR = 6, 1 << 22
_EVERYONE = 0xFFFFFFFF


def forward(element: Element, cell: Pointwise, reach: int) -> tuple[Any, tuple[Any, ...]]:
    """The forward kernel and its signature.

    `kernel(y, w_hh_0, w_hh_1, h0, h_n, offsets, T, B, H, packed)`: y holds z = x W_ih^T + b and is
    overwritten by the states; h_n is written. Direction 1 walks from the last step to the first.
    """
    real, up, down, activation = element.real, element.up, element.down, cell.activation
    zero, wide, short = element.real(0), LANES * reach, reach < REACHES[-1]
    take, multiply = _taking(element, reach, True), _multiplying(element, reach)

    def kernel(
        y: Any,
        w_hh_0: Any,
        w_hh_1: Any,
        h0: Any,
        h_n: Any,
        offsets: Any,
        T: int,
        B: int,
        H: int,
        packed: int,
    ) -> None:
        x = cuda.shared.array(0, real, alignment=16)
        lane, column = cuda.threadIdx.x % LANES, cuda.threadIdx.x // LANES
        row, d, ld = cuda.blockIdx.x, cuda.blockIdx.y, cuda.gridDim.y * H
        weights = cuda.local.array(reach, real)
        share = cuda.local.array(AHEAD, real)
        take(weights, w_hh_0 if d == 0 else w_hh_1, H, column, lane)
        for e in range(cuda.threadIdx.x, 2 * wide, cuda.blockDim.x):
            x[e] = zero
        cuda.syncthreads()
        own, at = column < H, small(d * H + column)
        h = zero
        if own:
            h = up(h0[(d * B + row) * H + column])
            if lane == 0:
                x[column] = h
        length = small(steps_of(offsets, row, T, packed))
        onward, stride = d == 0, B * ld if d == 0 else -B * ld
        for u in range(AHEAD):
            share[u] = zero
            if own and u < length:
                share[u] = up(y[place_of(offsets, u, length, B, row, packed, onward) * ld + at])
        # The place of the step to be written next, and that of the step to be loaded next.
        done = place_of(offsets, 0, length, B, row, packed, onward) * ld + at
        far = done + AHEAD * stride
        distant = short and packed == 0 and T * B * ld > FAR and own and lane == 0
        cuda.syncthreads()
        base = small(0)
        while base < length:
            for u in range(AHEAD):
                step = small(base + u)
                if step < length:
                    total = multiply(x, u % 2 * wide, weights, lane)
                    # The rest of the previous step overlaps with adding up the sums.
                    if step > 0:
                        ahead = small(step + AHEAD - 1)
                        if packed != 0:
                            done = place_of(offsets, step - 1, length, B, row, 1, onward) * ld + at
                        if own and lane == 0:
                            y[done] = down(h)
                        if own and ahead < length:
                            if packed != 0:
                                far = place_of(offsets, ahead, length, B, row, 1, onward) * ld + at
                            share[(u + AHEAD - 1) % AHEAD] = up(y[far])
                        if distant and ahead + DEEP < length:
                            prefetch(y, far + DEEP * stride)
                        done, far = done + stride, far + stride
                    h = activation(share[u] + total)
                    if own and lane == 0:
                        x[(u + 1) % 2 * wide + column] = h
                    cuda.syncthreads()
            base = small(base + AHEAD)
        if own and lane == 0:
            y[place_of(offsets, length - 1, length, B, row, packed, onward) * ld + at] = down(h)
            h_n[(d * B + row) * H + column] = down(h)

    data, integer = types.CPointer(element.store), types.int64
    return kernel, (*[data] * 5, types.CPointer(integer), *[integer] * 4)


def backward(element: Element, cell: Pointwise, reach: int) -> tuple[Any, tuple[Any, ...]]:
    """The backward kernel and its signature.

    `kernel(dz, grad_y, y, w_hh_0, w_hh_1, grad_h_n, grad_h0, offsets, T, B, H, packed, has_grad_y,
    has_grad_h_n)`: dz and grad_h0 are written; grad_y and grad_h_n count as zero, and are not read,
    if their flag is 0. Direction 0 walks from the last step to the first.
    """
    real, up, down, gradient = element.real, element.up, element.down, cell.gradient
    zero, wide, short = element.real(0), LANES * reach, reach < REACHES[-1]
    take, multiply = _taking(element, reach, False), _multiplying(element, reach)

    def kernel(
        dz: Any,
        grad_y: Any,
        y: Any,
        w_hh_0: Any,
        w_hh_1: Any,
        grad_h_n: Any,
        grad_h0: Any,
        offsets: Any,
        T: int,
        B: int,
        H: int,
        packed: int,
        has_grad_y: int,
        has_grad_h_n: int,
    ) -> None:
        x = cuda.shared.array(0, real, alignment=16)
        lane, column = cuda.threadIdx.x % LANES, cuda.threadIdx.x // LANES
        row, d, ld = cuda.blockIdx.x, cuda.blockIdx.y, cuda.gridDim.y * H
        weights = cuda.local.array(reach, real)
        state = cuda.local.array(AHEAD, real)
        above = cuda.local.array(AHEAD, real)
        take(weights, w_hh_0 if d == 0 else w_hh_1, H, column, lane)
        for e in range(cuda.threadIdx.x, 2 * wide, cuda.blockDim.x):
            x[e] = zero
        own, at = column < H, small(d * H + column)
        grad = zero
        if own and has_grad_h_n != 0:
            grad = up(grad_h_n[(d * B + row) * H + column])
        length = small(steps_of(offsets, row, T, packed))
        onward, stride = d == 1, B * ld if d == 1 else -B * ld
        for u in range(AHEAD):
            state[u], above[u] = zero, zero
            if own and u < length:
                place = place_of(offsets, u, length, B, row, packed, onward) * ld + at
                state[u] = up(y[place])
                if has_grad_y != 0:
                    above[u] = up(grad_y[place])
        now = place_of(offsets, 0, length, B, row, packed, onward) * ld + at
        far = now + AHEAD * stride
        distant = short and packed == 0 and T * B * ld > FAR and own and lane == 0
        cuda.syncthreads()
        base = small(0)
        while base < length:
            for u in range(AHEAD):
                step = small(base + u)
                if step < length:
                    change = gradient(grad + above[u], state[u])
                    # Loads are issued before the barrier, to overlap with the product, and without
                    # a condition, so that they are not delayed (excess values are not used).
                    ahead = small(step + AHEAD)
                    if packed != 0:
                        now = place_of(offsets, step, length, B, row, 1, onward) * ld + at
                        if ahead < length:
                            far = place_of(offsets, ahead, length, B, row, 1, onward) * ld + at
                    if own and lane == 0:
                        x[u % 2 * wide + column] = change
                        dz[now] = down(change)
                    place = far if own and ahead < length else 0
                    state[u] = up(y[place])
                    if has_grad_y != 0:
                        above[u] = up(grad_y[place])
                    if distant and ahead + DEEP < length:
                        prefetch(y, far + DEEP * stride)
                        if has_grad_y != 0:
                            prefetch(grad_y, far + DEEP * stride)
                    now, far = now + stride, far + stride
                    cuda.syncthreads()
                    grad = multiply(x, u % 2 * wide, weights, lane)
            base = small(base + AHEAD)
        if own and lane == 0:
            grad_h0[(d * B + row) * H + column] = down(grad)

    data, integer = types.CPointer(element.store), types.int64
    return kernel, (*[data] * 7, types.CPointer(integer), *[integer] * 6)


def _steps_of(offsets: Any, row: int, T: int, packed: int) -> int:
    """The number of steps of a sequence, which are the first ones with more than `row` rows."""
    low, high = 0, T
    if packed != 0:
        while low < high:
            middle = (low + high) // 2
            if offsets[middle + 1] - offsets[middle] > row:
                low = middle + 1
            else:
                high = middle
    return high


def _place_of(
    offsets: Any, step: int, length: int, B: int, row: int, packed: int, onward: bool
) -> int:
    """The row of a sequence in the time step that its walk of `length` steps visits as `step`."""
    t = step if onward else length - 1 - step
    return (offsets[t] if packed != 0 else t * B) + row


steps_of, place_of = inlined(_steps_of), inlined(_place_of)


def _taking(element: Element, reach: int, transposed: bool) -> Any:
    """Build `take(weights, w, H, column, lane)`, by which a thread copies its weights.

    They are M[k][column] = w[column, k] if `transposed`, else w[k, column], zero beyond `w`.
    """
    up, zero = element.up, element.real(0)

    def take(weights: Any, w: Any, H: int, column: int, lane: int) -> None:
        for i in range(reach // 4):
            for p in range(4):
                k = (i * LANES + lane) * 4 + p
                weights[i * 4 + p] = zero
                if k < H and column < H:
                    at = column * H + k if transposed else k * H + column
                    weights[i * 4 + p] = up(w[at])

    return inlined(take)


def _multiplying(element: Element, reach: int) -> Any:
    """Build `multiply(x, x_at, weights, lane)`: the total of a column, in each of its lanes.

    All threads of a warp must take part.
    """
    real, width, zero = element.real, element.width, element.real(0)

    def multiply(x: Any, x_at: int, weights: Any, lane: int) -> Any:
        v = cuda.local.array(4, real)
        sums = cuda.local.array(4, real)
        for p in range(4):
            sums[p] = zero
        for i in range(reach // 4):
            for q in range(0, 4, width):
                load(v, q, x, x_at + (i * LANES + lane) * 4 + q)
            for p in range(4):
                sums[p] += v[p] * weights[i * 4 + p]
        total = (sums[0] + sums[1]) + (sums[2] + sums[3])
        total += cuda.shfl_xor_sync(_EVERYONE, total, 1)
        return total + cuda.shfl_xor_sync(_EVERYONE, total, 2)

    return inlined(multiply)

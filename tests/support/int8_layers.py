"""Layers of int8 matrices by hand, as their contract says: exact integers, then float64.

`main` checks layers of the numba backend for the instruction set that RNNJIT_ISA names, on guarded
memory: an access out of bounds kills the process.
"""

from __future__ import annotations

import numpy as np
import torch
from guarded.memory import Guards, allocating

from rnnjit import LayerSpec, Rows
from rnnjit.ir import GRU, LSTM, RNN_RELU, RNN_TANH
from rnnjit_numba import run

#: I, H, directions, P, T, B: sizes beside multiples of vectors and of 64 bytes, one to many rows.
SIZES = (
    (1, 1, 1, 0, 3, 1),
    (63, 17, 2, 0, 3, 2),
    (64, 64, 1, 0, 2, 3),
    (65, 48, 1, 0, 3, 4),
    (128, 33, 1, 0, 2, 9),
    (129, 129, 2, 0, 2, 7),
    (20, 70, 1, 0, 5, 75),
)
PROJECTED = ((20, 33, 2, 17, 3, 6), (7, 130, 1, 65, 3, 1))
CELLS = {"tanh": RNN_TANH, "relu": RNN_RELU, "lstm": LSTM, "gru": GRU}


def quantized_rows(x):
    """The int64 numbers of float32 rows, and the scale of each."""
    x = x.numpy()
    m = np.abs(x).max(1, initial=0, keepdims=True)
    with np.errstate(all="ignore"):
        factor = np.float32(127) / m
        fits = np.isfinite(factor) & np.isfinite(m)
        numbers = np.rint(np.where(fits, x * factor, 0)).clip(-127, 127)
        scale = np.where(fits, m / np.float32(127), np.float32(0))
        scale = np.where(np.isfinite(m), scale, np.float32(np.nan))
    return torch.from_numpy(numbers.astype(np.int64)), torch.from_numpy(scale)


def product(x, matrix, scale):
    """Float64 `[rows, columns]` of float32 rows and an int8 matrix."""
    numbers, own = quantized_rows(x.float())
    sums = (numbers.double() @ matrix.double().t()).round()  # integers far below 2^53
    return sums * (own.double() * scale.double())


def drawn(cell, I, H, D, P, bias=True, seed=0):
    """A layer, and its weights: any int8 numbers, the smallest and the largest among them."""
    source = torch.Generator().manual_seed(seed)
    layer, weights = LayerSpec(cell, I, H, D, bias, P, True), []
    for _ in range(D):
        matrices = []
        for shape in layer.weight_shapes:
            if len(shape) == 2:
                found = torch.randint(-127, 128, shape, generator=source).to(torch.int8)
                found[0] = 127
                found[-1] = -127
                matrices.append(found)
        small = [
            torch.randn(each, generator=source) for each in layer.weight_shapes if len(each) == 1
        ]
        scales = [
            (0.2 + torch.rand(len(m), generator=source)) / (127 * m.shape[1] ** 0.5)
            for m in matrices
        ]
        sums = [m.sum(1, dtype=torch.int32) for m in matrices]
        count = 2 if bias else 0
        biases, parameters = small[:count], small[count : count + len(cell.parameters)]
        weights += [*matrices[:2], *biases, *matrices[2:], *parameters, *scales, *sums]
    return layer, weights


def steps(layer, weights, d, x, before):
    """One step of a direction: the output and the states, from the float32 states before."""
    count = layer.weights_per_direction
    own = weights[d * count : (d + 1) * count]
    w_ih, w_hh, *rest = own
    biases = [rest.pop(0).double() for _ in range(2)] if layer.bias else [0.0, 0.0]
    w_hr = rest.pop(0) if layer.proj_size else None
    scales = rest
    zx = product(x, w_ih, scales[0]) + biases[0]
    zh = product(before[0], w_hh, scales[1]) + biases[1]
    if layer.cell is LSTM:
        i, f, g, o = (zx + zh).chunk(4, 1)
        c = f.sigmoid() * before[1].double() + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        return (h if w_hr is None else product(h, w_hr, scales[2])), c
    if layer.cell is GRU:
        (rx, ux, nx), (rh, uh, nh) = zx.chunk(3, 1), zh.chunk(3, 1)
        n = (nx + (rx + rh).sigmoid() * nh).tanh()
        u = (ux + uh).sigmoid()
        return (n + u * (before[0].double() - n),)
    return ((zx + zh).relu() if layer.cell is RNN_RELU else (zx + zh).tanh(),)


def check(layer, weights, x, hx, sizes):
    """Compare every step of the kernel with `steps` from the states that the kernel had before."""
    table = torch.tensor(sizes)
    packed = len(set(sizes)) > 1
    rows = Rows(len(sizes), sizes[0], len(x), table if packed else None)
    found = run.forward_states(layer, rows, x, hx, weights, False)
    P, H, starts = layer.output_size, layer.hidden_size, [0, *table.cumsum(0).tolist()]
    for d in range(layer.num_directions):
        mine = [found.y[:, d * P : (d + 1) * P]]
        mine += [state[:, d * H : (d + 1) * H] for state in found.states]
        for t, now in enumerate(sizes):
            before = [state[d, :now].clone() for state in hx]
            earlier = t - 1 if d == 0 else t + 1
            if 0 <= earlier < len(sizes):
                there = min(now, sizes[earlier])
                for state, each in zip(before, mine, strict=True):
                    state[:there] = each[starts[earlier] : starts[earlier] + there]
            wanted = steps(layer, weights, d, x[starts[t] : starts[t] + now], before)
            ours = [each[starts[t] : starts[t] + now] for each in mine]
            for value, exact in zip(ours, wanted, strict=True):
                torch.testing.assert_close(
                    value.double(), exact, rtol=1e-5, atol=4e-6, equal_nan=True
                )
            # The sequences that end here, or with the second direction all at its last step.
            following = sizes[t + 1] if t + 1 < len(sizes) else 0
            ended = slice(following, now) if d == 0 else slice(0, now if t == 0 else 0)
            for end, value in zip(found.h_n, ours, strict=True):
                assert torch.equal(end[d, ended].nan_to_num(), value[ended].nan_to_num())


def inputs(layer, sizes, seed=1):
    source = torch.Generator().manual_seed(seed)
    x = torch.randn(sum(sizes), layer.input_size, generator=source)
    hx = [
        torch.randn(layer.num_directions, sizes[0], size, generator=source)
        for size in layer.state_sizes
    ]
    return x, tuple(hx)


def check_sizes(name, sizes, bias=True):
    I, H, D, P, T, B = sizes
    layer, weights = drawn(CELLS[name], I, H, D, P, bias)
    check(layer, weights, *inputs(layer, [B] * T), [B] * T)


#: GRU has its recurrent products apart.
CALLS = (
    *((LSTM, *sizes) for sizes in (*SIZES, *PROJECTED)),
    *((GRU, *sizes) for sizes in (SIZES[3], SIZES[5])),
)


def main(calls=CALLS):
    for cell, I, H, D, P, T, B in calls:
        layer, weights = drawn(cell, I, H, D, P)
        x, hx = inputs(layer, [B] * T)
        guards = Guards()
        for guards.at_end in (True, False):
            own = [guards.copy(weight) for weight in weights]
            states = tuple(guards.copy(state) for state in hx)
            given = guards.copy(x)
            with allocating(guards):
                check(layer, own, given, states, [B] * T)
            guards.check()

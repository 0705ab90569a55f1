"""Calls of CUDA kernels in the simulator, and what the equations make of them in float64."""

from __future__ import annotations

from itertools import product
from typing import Any, NamedTuple

import numpy as np
import torch
from cuda_cells import activation

from rnnjit.ir import CellSpec
from rnnjit.ir.numpy_evaluator import evaluate_arrays
from rnnjit_cuda import kernels
from rnnjit_cuda.kernels import KernelKey, column_tile, share, threads
from rnnjit_cuda.sources import source

Array = np.ndarray[Any, Any]

TORCH = {name: getattr(torch, name) for name in ("float32", "float64", "bfloat16", "float16")}
HALVES = ("bfloat16", "float16")
#: Relative to the largest true value. 16-bit results are rounded once, from float32.
TOLERANCE = {"float32": 2e-6, "float64": 4e-15, "bfloat16": 2.0**-8, "float16": 2.0**-11 + 1e-6}


class Case(NamedTuple):
    """The shape of a call; `packed` has sequences of different lengths."""

    H: int
    B: int
    T: int
    D: int
    packed: bool

    @property
    def sizes(self) -> list[int]:
        """Rows of each step."""
        lengths = [self.T - b * self.T // (self.B + 1) * self.packed for b in range(self.B)]
        return [sum(length > t for length in lengths) for t in range(self.T)]


class Numbers:
    """A tensor of one dtype: `values` in float64, `bits` as a kernel gets and leaves them."""

    def __init__(self, dtype: str, values: Array) -> None:
        tensor = torch.tensor(values).to(TORCH[dtype])
        self.dtype, self.shape, self.values = dtype, tensor.shape, tensor.double().numpy()
        bits = tensor.view(torch.uint16) if dtype in HALVES else tensor
        self.bits = bits.numpy().reshape(-1).copy()
        self._before = self.bits.tobytes()

    @property
    def now(self) -> Array:
        """What `bits` hold, in float64."""
        tensor = torch.from_numpy(self.bits)
        numbers = tensor.view(TORCH[self.dtype]) if self.dtype in HALVES else tensor
        return numbers.double().reshape(self.shape).numpy()

    def plant(self, where: Any, value: float) -> None:
        """Put a value somewhere, before a kernel runs."""
        values = self.values.copy()
        values[where] = value
        self.__init__(self.dtype, values)

    @property
    def untouched(self) -> bool:
        return self.bits.tobytes() == self._before


def gradient(cell: CellSpec, grad: Array, h: Array) -> Array:
    dz, _ = evaluate_arrays(cell.backward, [h, 0.0, grad])
    assert dz is not None
    return dz


class Call:
    """The tensors of one recurrence, at random, and what the equations make of them."""

    def __init__(self, case: Case, dtype: str, cell: CellSpec, seed: int = 0) -> None:
        H, B, _, D, _ = case
        self.case, self.cell = case, cell
        self.starts = np.array([0, *np.cumsum(case.sizes)], np.int64)
        N = int(self.starts[-1])
        rng = np.random.default_rng(seed)

        def uniform(*shape: int, scale: float = 1.0) -> Numbers:
            return Numbers(dtype, rng.uniform(-scale, scale, shape))

        def unwritten(*shape: int) -> Numbers:
            return Numbers(dtype, np.full(shape, np.nan))

        self.y, self.grad_y = uniform(N, D * H), uniform(N, D * H)
        self.w_hh = [uniform(H, H, scale=H**-0.5) for _ in range(D)]
        self.h0, self.grad_h_n = uniform(D, B, H), uniform(D, B, H)
        self.h_n, self.grad_h0 = unwritten(D, B, H), unwritten(D, B, H)
        self.dz = unwritten(N, D * H)

    @property
    def inputs(self) -> list[Numbers]:
        return [self.grad_y, *self.w_hh, self.h0, self.grad_h_n]

    def walks(self) -> list[tuple[int, int, list[int], slice]]:
        """Direction, sequence, its rows in the order of the recurrence, its columns of y."""
        found = []
        for d, b in product(range(self.case.D), range(self.case.B)):
            rows = [int(self.starts[t]) + b for t, size in enumerate(self.case.sizes) if b < size]
            own = slice(d * self.case.H, (d + 1) * self.case.H)
            found.append((d, b, rows if d == 0 else rows[::-1], own))
        return found

    def forward_truth(self) -> tuple[Array, Array]:
        """Y and h_n."""
        y, h_n = self.y.values.copy(), self.h0.values.copy()
        for d, b, rows, own in self.walks():
            for n in rows:
                z = y[n, own] + self.w_hh[d].values @ h_n[d, b]
                h_n[d, b] = activation(self.cell, z)
                y[n, own] = h_n[d, b]
        return y, h_n

    def backward_truth(self, has_grad_y: bool, has_grad_h_n: bool) -> tuple[Array, Array]:
        """Dz and grad_h0."""
        grad_y = self.grad_y.values if has_grad_y else np.zeros(self.y.shape)
        grad_h0 = self.grad_h_n.values.copy() if has_grad_h_n else np.zeros(self.h0.shape)
        dz = np.empty(self.y.shape)
        for d, b, rows, own in self.walks():
            for n in reversed(rows):
                grad = grad_h0[d, b] + grad_y[n, own]
                dz[n, own] = gradient(self.cell, grad, self.y.values[n, own])
                grad_h0[d, b] = dz[n, own] @ self.w_hh[d].values
        return dz, grad_h0


def launch(
    key: KernelKey,
    call: Call,
    flags: tuple[int, int] = (1, 1),
    tiles: int = 1,
    slabs: int = 1,
    **how: Any,
):
    """Run a persistent kernel with the extent that `kernels` gives.

    Args:
        key: the kernel.
        call: what it computes.
        flags: whether grad_y and grad_h_n are there, for a backward kernel.
        tiles: of columns in a block, for "grid" and "stream".
        slabs: that the batch is cut into, for these.
        how: more for `cuda_simulator.run`, whose result this returns.
    """
    from cuda_simulator import run

    H, B, T, D, _ = call.case
    weights = [call.w_hh[0].bits, call.w_hh[-1].bits]
    part, workspace, sizes = None, [], [T, B, H]
    if key.family in ("grid", "stream"):
        part = share(key, H, tiles * column_tile(key), -(-B // slabs))
    grid = kernels.blocks(key, D, B, H, part)
    if part is not None:
        real = np.float64 if key.dtype == "float64" else np.float32
        exchange = np.full(kernels.exchange_elements(key, grid, H, part), np.nan, real)
        workspace = [exchange, np.zeros(kernels.counter_elements(grid), np.int64)]
        sizes += [part.columns, part.splits, part.slab]
    if key.family == "stream":
        weights = [panel(key, w, H, grid[0] * part.columns) for w in weights]
    if key.pass_ == "forward":
        tensors, ends = [call.y.bits, *weights, call.h0.bits, call.h_n.bits], []
    else:
        ours = [call.dz.bits, call.grad_y.bits, call.y.bits]
        tensors = [*ours, *weights, call.grad_h_n.bits, call.grad_h0.bits]
        ends = list(flags)
    # A dense batch has none, and what is given instead must not be read.
    starts = call.starts.copy() if call.case.packed else np.full(T + 1, 1 << 40)
    before = starts.copy()
    packed = int(call.case.packed)
    arguments = [*tensors, *workspace, starts, *sizes, packed, *ends]
    extent = grid, threads(key, H, part), kernels.shared_bytes(key, H, part)
    result = run(source(key).function, *extent, arguments, **how)
    assert all(tensor.untouched for tensor in call.inputs)
    assert np.array_equal(starts, before)
    return result


def panel(key: KernelKey, bits: Array, H: int, columns: int) -> Array:
    """The weights as "stream" reads them: a row for each column of the block's, zeros behind."""
    w = bits.reshape(H, H)
    found = np.zeros((columns, kernels.padded(H)), bits.dtype)
    found[:H, :H] = w if key.pass_ == "forward" else w.T
    return found.reshape(-1)


def check_forward(key: KernelKey, call: Call, **how: Any) -> None:
    with np.errstate(all="ignore"):
        y, h_n = call.forward_truth()
    launch(key, call, **how)
    check(call.y, y)
    check(call.h_n, h_n)


def check_backward(key: KernelKey, call: Call, flags: tuple[int, int] = (1, 1), **how: Any) -> None:
    with np.errstate(all="ignore"):
        dz, grad_h0 = call.backward_truth(*map(bool, flags))
    launch(key, call, flags, **how)
    check(call.dz, dz)
    check(call.grad_h0, grad_h0)
    assert call.y.untouched


def check(got: Numbers, truth: Array) -> None:
    """NaN and infinities stand where they should, and all else is as near as the dtype allows."""
    found, finite = got.now, np.isfinite(truth)
    np.testing.assert_array_equal(found[~finite], truth[~finite])
    scale = np.abs(truth[finite]).max(initial=1.0)
    assert np.abs(found[finite] - truth[finite]).max(initial=0.0) <= TOLERANCE[got.dtype] * scale

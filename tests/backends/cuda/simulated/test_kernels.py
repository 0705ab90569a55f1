"""The CUDA kernels one by one, in the simulator, against loops over numpy's float64."""

from __future__ import annotations

from itertools import product
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from cuda_cells import POINTS, SIGMOID, SINGLE, activation

from rnnjit.cells import GRU, RNN_RELU, RNN_TANH, Cell
from rnnjit.cells.numpy_evaluator import evaluate_arrays
from rnnjit_cuda import kernels
from rnnjit_cuda.kernels import LANES, KernelKey, column_tile, share, threads, variants
from rnnjit_cuda.sources import source

Array = np.ndarray[Any, Any]

TORCH = {name: getattr(torch, name) for name in ("float32", "float64", "bfloat16", "float16")}
HALVES = ("bfloat16", "float16")
#: Relative to the largest true value. 16-bit results are rounded once, from float32.
TOLERANCE = {"float32": 2e-6, "float64": 4e-15, "bfloat16": 2.0**-8, "float16": 2.0**-11 + 1e-6}
KEYS = variants()
FORWARD = [key for key in KEYS if key.family != "step" and key.pass_ == "forward"]
BACKWARD = [key for key in KEYS if key.family != "step" and key.pass_ == "backward"]
STEPS = [key for key in variants([RNN_TANH, RNN_RELU, SIGMOID]) if key.family == "step"]
#: One kernel of each family and pass.
SAMPLES = [
    KernelKey(family, pass_, "float64", RNN_TANH, 4)
    for family, pass_ in product(("block", "grid", "stream"), ("forward", "backward"))
] + [KernelKey("register", d, "float64", RNN_TANH, reach=32) for d in ("forward", "backward")]
#: One of them at least shows that a barrier is gone.
SEEDS = range(12)


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


CASES = [
    Case(H, B, T, D, packed)
    for H, B, (T, packed), D in product(
        (1, 7, 20, 33, 64), (1, 3, 9), ((1, False), (4, False), (4, True)), (1, 2)
    )
]
#: For the register kernels of the largest reach.
LARGE = [Case(65, 3, 4, 2, True), Case(128, 2, 5, 1, False)]
#: More hidden units than the lanes of a warp take at once, in a block of several tiles of columns.
WIDE = Case(140, 2, 2, 1, True)
SMALL = Case(9, 3, 3, 2, True)
#: With 3 tiles of columns, `SAMPLES` have several warps in all that a block does, and the grid's
#: have several splits of k and several blocks.
SHARED = Case(65, 4, 2, 1, True)


def some_cases(keys: list[KernelKey], key: KernelKey) -> list[Case]:
    """A few cases for each kernel; those of a family, pass and reach see every case of theirs."""
    alike = [other for other in keys if (other.family, other.reach) == (key.family, key.reach)]
    return cases_of(key)[alike.index(key) % len(alike) :: len(alike)]


def cases_of(key: KernelKey) -> list[Case]:
    """Those whose weights a block of a register kernel can hold, and not half of it; else all."""
    most = LANES * key.reach
    if not most:
        return CASES
    return [case for case in CASES + LARGE * 4 if most // 2 < max(case.H, 17) <= most]


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


def gradient(cell: Cell, grad: Array, h: Array) -> Array:
    dz, _ = evaluate_arrays(cell.backward, [h, 0.0, grad])
    assert dz is not None
    return dz


class Call:
    """The tensors of one recurrence, at random, and what the equations make of them."""

    def __init__(self, case: Case, dtype: str, cell: Cell, seed: int = 0) -> None:
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
        exchange = np.full(kernels.exchange_elements(grid, H, part), np.nan, real)
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


def outcome(key: KernelKey, **how: Any) -> bytes:
    """All bits that a kernel writes, of `SHARED`."""
    call = Call(SHARED, key.dtype, key.cell)
    launch(key, call, tiles=3, **how)
    written = (call.y, call.h_n) if key.pass_ == "forward" else (call.dz, call.grad_h0)
    return b"".join(tensor.bits.tobytes() for tensor in written)


def key_for(family: str, pass_: str, dtype: str, cell: Cell) -> KernelKey:
    """A kernel of a family that `SMALL` fits."""
    if family == "register":
        return KernelKey(family, pass_, dtype, cell, reach=8)
    return KernelKey(family, pass_, dtype, cell, 4 if family == "stream" else 2)


@pytest.mark.parametrize("key", FORWARD, ids=str)
def test_forward(key):
    for index, case in enumerate(some_cases(FORWARD, key)):
        call = Call(case, key.dtype, key.cell, seed=index)
        check_forward(key, call, tiles=1 + index % 2, slabs=1 + index % 3, seed=index)


@pytest.mark.parametrize("key", BACKWARD, ids=str)
def test_backward(key):
    for index, case in enumerate(some_cases(BACKWARD, key)):
        call = Call(case, key.dtype, key.cell, seed=index)
        flags = (int(index % 3 != 1), int(index % 3 != 2))
        check_backward(key, call, flags, tiles=1 + index % 2, slabs=1 + index % 3, seed=index)


@pytest.mark.parametrize("keys", [FORWARD, BACKWARD], ids=["forward", "backward"])
@pytest.mark.parametrize("family", ["register", "block", "grid", "stream"])
def test_every_case_is_among_those_of_some_kernel(keys, family):
    seen = {case for key in keys if key.family == family for case in some_cases(keys, key)}
    assert seen - set(LARGE) == set(CASES)


@pytest.mark.parametrize("dtype", TORCH)
@pytest.mark.parametrize("family", ["grid", "stream"])
def test_a_sum_over_several_turns_of_the_lanes(family, dtype):
    call = Call(WIDE, dtype, RNN_TANH)
    check_forward(KernelKey(family, "forward", dtype, RNN_TANH, 4), call, tiles=3)
    call = Call(WIDE, dtype, RNN_TANH)
    check_backward(KernelKey(family, "backward", dtype, RNN_TANH, 4), call, tiles=3)


@pytest.mark.parametrize(
    ("family", "rows", "B", "slabs"),
    [("grid", 2, 37, 1), ("grid", 4, 70, 2), ("grid", 8, 135, 2), ("stream", 4, 75, 1)],
)
def test_several_rounds_of_tiles(family, rows, B, slabs):
    case = Case(9, B, 3, 2, True)
    for pass_, check_pass in (("forward", check_forward), ("backward", check_backward)):
        key = KernelKey(family, pass_, "float32", RNN_TANH, rows)
        part = share(key, case.H, 2 * column_tile(key), -(-B // slabs))
        assert part.slab > part.teams * rows
        check_pass(key, Call(case, "float32", RNN_TANH), tiles=2, slabs=slabs)


@pytest.mark.parametrize("D", [1, 2])
def test_what_lies_far_is_told_to_the_cache_ahead(D, monkeypatch):
    from rnnjit_cuda import register_kernel

    asked = []
    monkeypatch.setattr(register_kernel, "FAR", 0)
    monkeypatch.setattr(
        register_kernel, "prefetch", lambda memory, index: asked.append(memory[index])
    )
    case = Case(20, 2, 12, D, False)
    for pass_, check_pass in (("forward", check_forward), ("backward", check_backward)):
        key = KernelKey("register", pass_, "float32", RNN_TANH, reach=8)
        check_pass(key, Call(case, "float32", RNN_TANH))
        assert asked
        asked.clear()


@pytest.mark.parametrize("flags", list(product((0, 1), (0, 1))))
@pytest.mark.parametrize("family", ["register", "block", "grid", "stream"])
def test_absent_gradients_are_not_read(family, flags):
    call = Call(SMALL, "float32", RNN_TANH)
    for flag, tensor in zip(flags, (call.grad_y, call.grad_h_n), strict=True):
        if not flag:
            tensor.plant(..., np.nan)
    check_backward(key_for(family, "backward", "float32", RNN_TANH), call, flags)


@pytest.mark.parametrize("cell", [RNN_TANH, RNN_RELU], ids=lambda cell: cell.name)
@pytest.mark.parametrize("dtype", TORCH)
@pytest.mark.parametrize("family", ["register", "block", "grid", "stream"])
def test_nan_and_infinities_go_where_the_equations_take_them(family, dtype, cell):
    call = Call(SMALL, dtype, cell)
    call.y.plant((0, 2), np.inf)
    call.y.plant((4, 3), -np.inf)
    call.y.plant((6, 10), np.nan)
    call.h0.plant((0, 1, 8), np.nan)
    call.h0.plant((1, 0, 4), np.inf)
    check_forward(key_for(family, "forward", dtype, cell), call)
    call = Call(SMALL, dtype, cell)
    call.y.plant((6, 10), np.nan)
    call.grad_y.plant((4, 3), np.inf)
    call.grad_h_n.plant((1, 2, 8), np.nan)
    call.w_hh[0].plant((2, 5), -np.inf)
    check_backward(key_for(family, "backward", dtype, cell), call)


@pytest.mark.parametrize("dtype", TORCH)
@pytest.mark.parametrize("family", ["register", "block", "grid", "stream"])
def test_a_cell_that_no_kernel_was_written_for(family, dtype):
    check_forward(key_for(family, "forward", dtype, SIGMOID), Call(SMALL, dtype, SIGMOID))
    check_backward(key_for(family, "backward", dtype, SIGMOID), Call(SMALL, dtype, SIGMOID))


@pytest.mark.parametrize("dtype", TORCH)
@pytest.mark.parametrize("cell", SINGLE.values(), ids=lambda cell: cell.name)
def test_each_operation(cell, dtype):
    from cuda_simulator import run

    key = KernelKey("step", "forward", dtype, cell)
    y = Numbers(dtype, POINTS[None])
    expected = Numbers(dtype, activation(cell, y.values))
    run(source(key).function, (1, 1), 32, 0, [y.bits, 1, len(POINTS), len(POINTS)])
    # exp(100) is infinite in float32, so that what is divided by it is zero.
    close = {"rtol": TOLERANCE[dtype], "atol": np.finfo(np.float32).tiny}
    np.testing.assert_allclose(y.now, expected.values, **close)


def test_no_gradient_is_zero():
    from cuda_simulator import run

    cell = SINGLE["exp"]
    tensors = [Numbers("float32", POINTS[None]) for _ in range(4)]
    bits = [tensor.bits for tensor in tensors]
    key = KernelKey("step", "backward", "float32", cell)
    run(source(key).function, (1, 1), 32, 0, [*bits, 1, len(POINTS), len(POINTS), 1])
    assert not tensors[0].now.any()


@pytest.mark.parametrize("key", SAMPLES, ids=str)
def test_the_order_of_threads_changes_no_bit(key):
    assert len({outcome(key, seed=seed) for seed in SEEDS[:4]}) == 1


@pytest.mark.parametrize("key", SAMPLES, ids=str)
def test_every_barrier_of_a_block_is_missed_when_it_is_gone(key):
    right, call = outcome(key), Call(SHARED, key.dtype, key.cell)
    sites = launch(key, call, tiles=3)
    assert len(sites) >= 2
    for site in sites:
        assert any(outcome(key, seed=seed, omit=site) != right for seed in SEEDS), site


@pytest.mark.parametrize(
    "key", [key for key in SAMPLES if key.family in ("grid", "stream")], ids=str
)
def test_the_barrier_of_the_grid_is_missed_when_it_is_gone(key, monkeypatch):
    from rnnjit_cuda import grid_sync

    right = outcome(key)
    monkeypatch.setattr(grid_sync, "arrived", lambda counters, index: 1 << 60)
    assert any(outcome(key, seed=seed) != right for seed in SEEDS)


def test_blocks_that_wait_for_ever_are_an_error(monkeypatch):
    from rnnjit_cuda import grid_sync

    monkeypatch.setattr(grid_sync, "arrive", lambda counters, index: None)
    with pytest.raises(RuntimeError, match="deadlock"):
        outcome(SAMPLES[2])


@pytest.mark.parametrize("key", SAMPLES, ids=str)
def test_no_kernel_runs_in_less_shared_memory(key, monkeypatch):
    whole = kernels.shared_bytes
    monkeypatch.setattr(kernels, "shared_bytes", lambda *sizes: whole(*sizes) - 16)
    with pytest.raises((IndexError, ValueError)):
        outcome(key)


@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("key", STEPS, ids=str)
def test_step(key, rows):
    from cuda_simulator import run

    H, ld = 300, 310
    rng = np.random.default_rng(rows)
    dz, grad_y, y = (Numbers(key.dtype, rng.uniform(-1, 1, (rows, ld))) for _ in range(3))
    grad = Numbers(key.dtype, rng.uniform(-1, 1, (rows, H)))
    y.plant((0, 7), np.nan)
    y.plant((0, 8), np.inf)
    extent = kernels.blocks(key, 1, rows, H), threads(key, H), kernels.shared_bytes(key, H)
    if key.pass_ == "forward":
        truth, written = y.values.copy(), y
        truth[:, :H] = activation(key.cell, y.values[:, :H])
        run(source(key).function, *extent, [y.bits, rows, H, ld])
    else:
        truth, written = dz.values.copy(), dz
        whole = grad.values + grad_y.values[:, :H]
        truth[:, :H] = gradient(key.cell, whole, y.values[:, :H])
        arguments = [dz.bits, grad.bits, grad_y.bits, y.bits, rows, H, ld, 1]
        run(source(key).function, *extent, arguments)
    check(written, truth)
    assert all(tensor.untouched for tensor in (grad, grad_y, dz, y) if tensor is not written)


@pytest.mark.parametrize("cell", [RNN_TANH, RNN_RELU], ids=lambda cell: cell.name)
def test_step_without_grad_y(cell):
    from cuda_simulator import run

    key = KernelKey("step", "backward", "float32", cell)
    tensors = [Numbers("float32", np.linspace(-1, 1, 12).reshape(3, 4)) for _ in range(4)]
    dz, grad, grad_y, y = tensors
    grad_y.plant(..., np.nan)
    bits = [tensor.bits for tensor in tensors]
    run(source(key).function, (1, 3), 32, 0, [*bits, 3, 4, 4, 0])
    check(dz, gradient(cell, grad.values, y.values))


@pytest.mark.parametrize("dtype", HALVES)
def test_sixteen_bit_numbers_are_rounded_as_torch_rounds(dtype):
    from rnnjit_cuda.primitives import element

    numbers = element(dtype)
    every = torch.arange(2**16, dtype=torch.int32).to(torch.uint16)
    with np.errstate(all="ignore"):
        up = np.array([numbers.up(bits) for bits in every.numpy()], np.float32)
        np.testing.assert_array_equal(up, every.view(TORCH[dtype]).float().numpy())
        rng = np.random.default_rng(0)
        ties = np.nextafter(up[:-1:64], np.float32(0)) / 2 + up[1::64] / 2
        values = np.concatenate([rng.normal(0, 100, 2000), ties, [0, -0.0, np.inf, -np.inf, 1e38]])
        values = values.astype(np.float32)
        down = np.array([numbers.down(value) for value in values], np.uint16)
    finite = ~np.isnan(values)
    truth = torch.from_numpy(values).to(TORCH[dtype]).view(torch.uint16).numpy()
    np.testing.assert_array_equal(down[finite], truth[finite])
    assert np.isnan(torch.from_numpy(down).view(TORCH[dtype]).float().numpy()[~finite]).all()


def test_what_there_is_not_is_refused():
    with pytest.raises(ValueError, match="no kernel"):
        source(KernelKey("block", "forward", "float32", GRU, 1))
    with pytest.raises(ValueError, match="no kernel"):
        source(KernelKey("block", "forward", "float64", RNN_TANH, 8))
    with pytest.raises(ValueError, match="multiple of 8"):
        share(KernelKey("grid", "forward", "float32", RNN_TANH, 1), 64, 12, 1)
    with pytest.raises(ValueError, match="16 warps"):
        share(KernelKey("grid", "forward", "float32", RNN_TANH, 1), 64, 136, 1)
    with pytest.raises(ValueError, match="128 threads"):
        threads(KernelKey("register", "forward", "float32", RNN_TANH, reach=8), 33)
    with pytest.raises(ValueError, match="512 threads"):
        threads(KernelKey("block", "forward", "float32", RNN_TANH, 1), 516)

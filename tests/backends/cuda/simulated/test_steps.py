"""Protects the CUDA kernels of single steps: operations, steps, and the rounding to 16 bits."""

import numpy as np
import pytest
import torch
from cuda_calls import HALVES, TOLERANCE, TORCH, Numbers, check, gradient
from cuda_cells import POINTS, SIGMOID, SINGLE, activation

from rnnjit.ir import RNN_RELU, RNN_TANH
from rnnjit_cuda import kernels
from rnnjit_cuda.kernels import KernelKey, threads, variants
from rnnjit_cuda.sources import source

STEPS = [key for key in variants([RNN_TANH, RNN_RELU, SIGMOID]) if key.family == "step"]


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

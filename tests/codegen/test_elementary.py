"""Protects the CPU kernels' own exp, tanh and sigmoid, against wider arithmetic."""

import numpy as np
import pytest
import torch
from covered import in_turn

import rnnjit
from rnnjit import LayerSpec, Rows
from rnnjit.ir import RNN_TANH, CellSpec
from rnnjit.ir.builder import exp, sigmoid

WIDE = {torch.float32: np.float64, torch.float64: np.longdouble}


def cell_of(function):
    """The cell h' = function(z)."""
    return CellSpec.trace(
        lambda zx, zh, h: (function(zx[0] + zh[0]),) * 2,
        name=function.__name__,
        gates=["z"],
        states=["h"],
    )


CELLS = {"exp": cell_of(exp), "tanh": RNN_TANH, "sigmoid": cell_of(sigmoid)}
EXACT = {"exp": np.exp, "tanh": np.tanh, "sigmoid": lambda z: 1 / (1 + np.exp(-z))}


def values(backend, cell, z):
    """A backend's function of z, by a layer of one feature: h' = f(1 z + 0 h)."""
    found = rnnjit.backends()[backend]
    if found.missing():
        pytest.skip("; ".join(found.missing()))
    rows, one = Rows(1, len(z), len(z)), torch.ones(1, 1, dtype=z.dtype)
    layer, h0 = LayerSpec(cell, 1, 1, 1, False), torch.zeros(1, len(z), 1, dtype=z.dtype)
    output = found.forward(layer, rows, z.view(-1, 1), (h0,), [one, torch.zeros_like(one)], False)
    return output.y.view(-1)


def units_in_the_last_place(name, z, found):
    """The largest error of what was found."""
    wide = WIDE[z.dtype]
    if np.finfo(wide).eps > torch.finfo(z.dtype).eps / 100:
        pytest.skip("there is no wider arithmetic on this machine")
    truth = EXACT[name](z.numpy().astype(wide))
    unit = np.spacing(np.abs(truth).astype(found.numpy().dtype)).astype(wide)
    return float((np.abs(found.numpy().astype(wide) - truth) / unit).max())


backends = pytest.mark.parametrize("backend", ["numba", "tvm"])
dtypes = pytest.mark.parametrize("dtype", list(WIDE), ids=["f32", "f64"])


@backends
@dtypes
@pytest.mark.parametrize(
    ("low", "high", "allowed"),
    [
        (0, 1e-6, 2.5),
        (1e-6, 0.1, 2.5),
        (0.1, 0.5, 2.5),
        (0.55, 1, 1.6),
        (1, 2, 1.1),
        (2, 4, 0.7),
        (4, 21, 0.6),
        (21, 1e30, 0.6),
    ],
)
def test_tanh_in_units_in_the_last_place(backend, dtype, low, high, allowed):
    """Gradients multiply its error by y / (1 - y^2): near 1 it has to be rounded rightly."""
    generator = torch.Generator().manual_seed(0)
    z = low + (high - low) * torch.rand(100_000, generator=generator, dtype=dtype)
    y = values(backend, CELLS["tanh"], z)
    assert units_in_the_last_place("tanh", z, y) < allowed
    assert torch.equal(values(backend, CELLS["tanh"], -z), -y)


@backends
@dtypes
def test_tanh_of_the_smallest_numbers(backend, dtype):
    z = torch.logspace(-40, 0, 100_001, dtype=torch.float64).to(dtype)
    assert units_in_the_last_place("tanh", z, values(backend, CELLS["tanh"], z)) < 2.5


@backends
@pytest.mark.parametrize(
    ("dtype", "function"), in_turn(list(WIDE), [("exp", 1.1), ("sigmoid", 2.5)])
)
@pytest.mark.parametrize(("low", "high"), [(-1, 1), (-80, 80)])
def test_exp_and_sigmoid_in_units_in_the_last_place(backend, dtype, function, low, high):
    name, allowed = function
    generator = torch.Generator().manual_seed(0)
    z = low + (high - low) * torch.rand(100_000, generator=generator, dtype=dtype)
    assert units_in_the_last_place(name, z, values(backend, CELLS[name], z)) < allowed


@backends
@dtypes
def test_exp_over_its_whole_range(backend, dtype):
    end = 708.0 if dtype is torch.float64 else 87.0
    z = torch.linspace(-end, end, 100_001, dtype=dtype)
    assert units_in_the_last_place("exp", z, values(backend, CELLS["exp"], z)) < 1.1
    # Subnormal results are rounded once, like others.
    z = torch.linspace(1.2 * -end, -end, 10_001, dtype=dtype)
    assert units_in_the_last_place("exp", z, values(backend, CELLS["exp"], z)) < 1.1


@backends
@dtypes
@pytest.mark.parametrize("name", list(CELLS))
def test_special_values(backend, dtype, name):
    inf, nan = float("inf"), float("nan")
    tiny, far = torch.finfo(dtype).smallest_normal, [30.0, -30.0, 800.0, -800.0, 1e30, -1e30]
    z = torch.tensor([0.0, -0.0, inf, -inf, nan, 1e-40, tiny, -tiny, *far], dtype=dtype)
    found = values(backend, CELLS[name], z)
    torch.testing.assert_close(found, getattr(torch, name)(z), equal_nan=True, rtol=1e-6, atol=0)

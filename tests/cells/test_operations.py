"""Protects torch's operators in traced cells: value and gradient at kinks, ties, NaN and Inf."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from traced_loops import assert_equals_loop

from rnnjit.cells import Cell

INF, NAN = math.inf, math.nan
SPECIAL = (-INF, -25.0, -3.0, -1.0, -0.3, -0.0, 0.0, 0.3, 0.5, 1.0, 3.0, 6.0, 25.0, INF, NAN)
FINITE = tuple(value for value in SPECIAL if abs(value) < INF)


class Apply(Cell):
    """Applies a function to the states h and c, and to a vector a."""

    def __init__(self, function):
        super().__init__(1, 3, states=("h", "c"))
        self.function = function
        self.a = nn.Parameter(torch.tensor([-0.5, 0.25, 2.0], dtype=torch.float64))

    def forward(self, x, h, c):
        return self.function(h, c, self.a), c


UNARY = {
    **{name: getattr(torch, name) for name in ("neg", "exp", "log", "log1p", "expm1", "sqrt")},
    **{name: getattr(torch, name) for name in ("tanh", "sigmoid", "relu", "abs", "sign", "sgn")},
    **{name: getattr(torch, name) for name in ("reciprocal", "rsqrt", "square", "positive")},
    **{name: getattr(F, name) for name in ("silu", "leaky_relu", "softplus", "logsigmoid", "elu")},
    **{name: getattr(F, name) for name in ("hardtanh", "relu6", "celu", "selu")},
    **{name: getattr(F, name) for name in ("softsign", "tanhshrink", "mish")},
    "softplus 2, 3": lambda x: F.softplus(x, 2.0, 3.0),
    "leaky_relu 0.2": lambda x: F.leaky_relu(x, 0.2),
    "elu 0.5": lambda x: F.elu(x, 0.5),
    "hardtanh 0, 0.5": lambda x: F.hardtanh(x, 0.0, 0.5),
    "threshold": lambda x: F.threshold(x, 0.3, -1.0),
    "gelu tanh": lambda x: F.gelu(x, approximate="tanh"),
    "clamp": lambda x: x.clamp(-1, 1),
    "clamp below": lambda x: torch.clamp(x, min=0.3),
    "clamp above": lambda x: torch.clamp_max(x, 0.3),
    "1 - x": lambda x: 1 - x,
    "x / 3": lambda x: x / 3,
    "2 / x": lambda x: 2 / x,
    "rsub alpha": lambda x: torch.rsub(x, 2.0, alpha=3),
    "add alpha": lambda x: torch.add(x, 1.0, alpha=3),
    **{f"x ** {n}": lambda x, n=n: x**n for n in (-1, 0, 1, 2, 3, 4, 0.5)},
    "isnan": lambda x: torch.where(torch.isnan(x), 0.0, x),
    "cast": lambda x: (x >= 0.3).to(x.dtype) * x,
    "double": lambda x: (x > 0).double() - (x < 0).double() + x,
    "bool times": lambda x: (x > 0) * x,
    "not": lambda x: torch.where(~(x < 0), x, -x),
    "and or": lambda x: torch.where((x > 0) & (x < 1) | (x == 3), x, 2 * x),
    "xor": lambda x: torch.where((x > 0) ^ (x > 1), x, 2 * x),
    "logical": lambda x: torch.where(torch.logical_and(x != 0, x <= 1), x, 2 * x),
    "of numbers": lambda x: torch.where(torch.logical_not(x), 1.0, x),
    "masked_fill": lambda x: x.masked_fill(x > 0.3, 0.5),
    "detach": lambda x: x.detach() * x,
    "data": lambda x: x.data * x,
    "like": lambda x: torch.zeros_like(x) + torch.ones_like(x) * x + torch.full_like(x, 2.0),
    "new": lambda x: x.new_zeros(x.shape) + x.new_full((3,), 2.0) * x + x.new_ones(1),
    "float": lambda x: x.double().to(x.dtype).contiguous().clone() * 1.0,
    "in place": lambda x: (x * 2).mul_(3.0).add_(x, alpha=2),
    "pow_": lambda x: (x * 2).pow_(2) + (x * 2).clamp_(min=0.5).pow_(-1),
    "literal": lambda x: x * torch.tensor(0.5) + torch.tensor([1.0, 2.0, 3.0]),
    "arange": lambda x: x * torch.arange(3),
}
BINARY = {
    "minimum": lambda h, c, a: torch.minimum(h, c),
    "maximum": lambda h, c, a: torch.maximum(h, c),
    "max": lambda h, c, a: torch.max(h, c),
    "maximum with a number": lambda h, c, a: torch.maximum(h, torch.tensor(0.3)),
    "maximum with a vector": lambda h, c, a: torch.maximum(h, a.detach()),
    "clamp by tensors": lambda h, c, a: torch.clamp(h, c, c + 1),
    "clamp by crossed tensors": lambda h, c, a: torch.clamp(h, c, 0.3 - c),
    "clamp by a vector": lambda h, c, a: torch.clamp(h, min=a),
    "where": lambda h, c, a: torch.where(h < c, h * a, c),
    "addcmul": lambda h, c, a: torch.addcmul(h, c, a, value=0.5),
    "addcdiv": lambda h, c, a: torch.addcdiv(h, c, a, value=0.5),
    "comparisons": lambda h, c, a: torch.where(h.ge(c), h, a) + torch.where(h.eq(c), 1.0, c),
}
DIFFERENTIABLE = {
    "lerp": lambda h, c, a: torch.lerp(h, c, 0.3) + torch.lerp(h, c, 0.7),
    "lerp by a vector": lambda h, c, a: torch.lerp(h, c, a),
    "lerp by a state": lambda h, c, a: torch.lerp(h, c, torch.sigmoid(h)),
    "prelu": lambda h, c, a: F.prelu(h, a[:1]) * F.prelu(c, a),
    "div": lambda h, c, a: h / (c * c + 1) + a / (h * h + 2),
}


@pytest.fixture(autouse=True)
def _float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("name", UNARY)
def test_operators_of_one_tensor(name):
    cell = Apply(lambda h, c, a: UNARY[name](h))
    assert_equals_loop(cell, T=1, B=60, values=SPECIAL, tolerance=1e-14)


def test_hardsigmoid():
    """Torch's own derivative is 1/6 in float32, in every dtype."""
    cell = Apply(lambda h, c, a: F.hardsigmoid(h))
    assert_equals_loop(cell, T=1, B=60, values=SPECIAL, tolerance=1e-7)


@pytest.mark.parametrize("name", BINARY)
def test_operators_of_several_tensors(name):
    assert_equals_loop(Apply(BINARY[name]), T=1, B=200, values=SPECIAL, tolerance=1e-14)


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_operators_whose_formula_differs_from_torchs(name):
    assert_equals_loop(Apply(DIFFERENTIABLE[name]), T=1, B=100, values=FINITE, tolerance=1e-13)

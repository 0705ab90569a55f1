"""Protects each operation's meaning and derivative: torch's, at ties, zeros and NaN too."""

import itertools

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from rnnjit.ir import OPERATIONS, Kind, Program, derivative, trace
from rnnjit.ir import builder as b
from rnnjit.ir.derivative import _RULES
from rnnjit.ir.numpy_evaluator import NUMPY_OPERATIONS, evaluate_arrays
from rnnjit.ir.torch_evaluator import TORCH_OPERATIONS, evaluate_tensors

INF, NAN = float("inf"), float("nan")
POINTS = [NAN, INF, -INF, -0.0, 0.0, 0.3, -0.3, 1.0, -1.0, 2.5, -2.5, 20.0, 20.5, -40.0, 800.0]
#: An operation's name, its traced form, and torch's function.
CASES = [
    ("constant", lambda x: x * 0.1, lambda x: x * 0.1),
    ("add", lambda x, y: x + y, torch.add),
    ("sub", lambda x, y: x - y, torch.sub),
    ("mul", lambda x, y: x * y, torch.mul),
    ("div", lambda x, y: x / y, torch.div),
    ("neg", lambda x: -x, torch.neg),
    ("exp", b.exp, torch.exp),
    ("log", b.log, torch.log),
    ("log1p", b.log1p, torch.log1p),
    ("expm1", b.expm1, torch.expm1),
    ("sqrt", b.sqrt, torch.sqrt),
    ("tanh", b.tanh, torch.tanh),
    ("sigmoid", b.sigmoid, torch.sigmoid),
    ("relu", b.relu, torch.relu),
    ("leaky_relu", lambda x: b.leaky_relu(x, 0.2), lambda x: F.leaky_relu(x, 0.2)),
    ("softplus", b.softplus, F.softplus),
    ("silu", b.silu, F.silu),
    ("abs", abs, torch.abs),
    ("sign", b.sign, torch.sign),
    ("minimum", b.minimum, torch.minimum),
    ("maximum", b.maximum, torch.maximum),
    ("clamp", lambda x: b.clamp(x, -0.3, 1.0), lambda x: torch.clamp(x, -0.3, 1.0)),
    ("clamp", lambda x: b.clamp(x, high=2.5), lambda x: torch.clamp(x, max=2.5)),
    ("clamp", lambda x: b.clamp(x, 1.0, -1.0), lambda x: torch.clamp(x, 1.0, -1.0)),
    ("lt", lambda x, y: b.where(x < y, x, 1.0), lambda x, y: torch.where(x < y, x, 1.0)),
    ("le", lambda x, y: b.where(x <= y, x, 1.0), lambda x, y: torch.where(x <= y, x, 1.0)),
    ("gt", lambda x, y: b.where(x > y, x, 1.0), lambda x, y: torch.where(x > y, x, 1.0)),
    ("ge", lambda x, y: b.where(x >= y, x, 1.0), lambda x, y: torch.where(x >= y, x, 1.0)),
    ("eq", lambda x, y: b.where(x == y, x, 1.0), lambda x, y: torch.where(x == y, x, 1.0)),
    ("ne", lambda x, y: b.where(x != y, x, 1.0), lambda x, y: torch.where(x != y, x, 1.0)),
    ("where", lambda x, y: b.where(x > y, x, y), lambda x, y: torch.where(x > y, x, y)),
    ("detach", lambda x: x * b.detach(x), lambda x: x * x.detach()),
    ("with_slope", lambda x, y: b.with_slope(x, y, b.detach(x)), lambda x, y: Sloped.apply(x, y)),
]
#: The operations of derivatives: the function whose derivative they are.
BACKWARD = {"tanh_backward": torch.tanh, "sigmoid_backward": torch.sigmoid}


class Sloped(torch.autograd.Function):
    """x, whose gradient also passes to y, times x."""

    @staticmethod
    def forward(ctx, x, y):
        ctx.save_for_backward(x)
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad, grad * ctx.saved_tensors[0]


def points(arity):
    """Every pair of points, or every point, as float64 tensors."""
    pairs = torch.tensor([*itertools.product(POINTS, repeat=arity)], dtype=torch.float64)
    return [axis.clone() for axis in pairs.unbind(1)]


def close(got, expected):
    if not isinstance(got, torch.Tensor):
        got = torch.from_numpy(np.array(got))
    torch.testing.assert_close(got, expected, rtol=1e-13, atol=1e-300, equal_nan=True)


def test_every_operation_has_a_case_a_derivative_and_functions():
    conditions = {name for name, each in OPERATIONS.items() if each.result.value == "condition"}
    backward = {name for name in OPERATIONS if name.endswith("_backward")}
    assert {name for name, *_ in CASES} == set(OPERATIONS) - backward
    assert set(_RULES) == set(OPERATIONS) - backward - conditions
    assert set(TORCH_OPERATIONS) == set(NUMPY_OPERATIONS) == set(OPERATIONS) - {"constant"}


@pytest.mark.parametrize(("name", "traced", "function"), CASES, ids=[case[0] for case in CASES])
def test_values_and_derivatives_are_torchs(name, traced, function):
    numbers = sum(kind is Kind.NUMBER for kind in OPERATIONS[name].arguments)
    arity = min(max(1, numbers), 2)
    program = trace(traced, ["x", "y"][:arity])
    assert name in {each.operation for each in program.instructions}
    inputs = [each.requires_grad_() for each in points(arity)]
    expected = function(*inputs)

    (value,) = evaluate_tensors(program, inputs)
    assert torch.equal(value.isnan(), expected.isnan())
    assert torch.equal(value.nan_to_num(), expected.nan_to_num())
    plain = [each.detach() for each in inputs]
    close(evaluate_arrays(program, plain)[0], expected.detach())

    grad = torch.linspace(-2, 3, expected.numel(), dtype=torch.float64)
    wanted = torch.autograd.grad(expected, inputs, grad, allow_unused=True)
    by_autograd = torch.autograd.grad(value, inputs, grad, allow_unused=True)
    backward = derivative(program, ["grad"])
    by_torch = evaluate_tensors(backward, [*plain, grad])
    by_numpy = evaluate_arrays(backward, [*plain, grad])
    for want, *got in zip(wanted, by_torch, by_numpy, by_autograd, strict=True):
        for each in got:
            if each is None or want is None:
                assert want is None or not want.any()
                assert each is None or not each.any()
            else:
                close(each, want)


@pytest.mark.parametrize("name", BACKWARD)
def test_derivative_operations_are_torchs(name):
    x = points(1)[0].requires_grad_()
    grad = torch.linspace(-2, 3, len(POINTS), dtype=torch.float64)
    result = BACKWARD[name](x)
    (expected,) = torch.autograd.grad(result, x, grad)
    check_backward(name, grad, result.detach(), expected)


def test_relu_backward_passes_the_gradient_at_nan():
    result = torch.tensor([NAN, 0.0, -0.0, 2.0, -1.0, INF], dtype=torch.float64)
    grad = torch.full((6,), 3.0, dtype=torch.float64)
    expected = torch.tensor([3.0, 0.0, 0.0, 3.0, 0.0, 3.0], dtype=torch.float64)
    check_backward("relu_backward", grad, result, expected)


def check_backward(name, grad, result, expected):
    program = Program.parse(f"(grad, result) %2 = {name}(%0, %1); return %2")
    close(evaluate_tensors(program, [grad, result])[0], expected)
    close(evaluate_arrays(program, [grad, result])[0], expected)
    with pytest.raises(NotImplementedError, match=name):
        derivative(program, ["again"])


def test_tensors_are_differentiable_twice():
    program = trace(lambda x, y: b.tanh(x * y) * b.sigmoid(y) + b.silu(x), ["x", "y"])
    backward = derivative(program, ["grad"])
    inputs = [torch.randn(5, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    assert torch.autograd.gradgradcheck(lambda *x: evaluate_tensors(program, x), inputs[:2])
    assert torch.autograd.gradcheck(lambda *x: evaluate_tensors(backward, x), inputs)


def test_a_missing_gradient_is_none():
    program = trace(lambda x, y, z: (b.detach(x) + b.sign(y), z), ["x", "y", "z"])
    assert derivative(program, ["first", "second"]).text == (
        "(x, y, z, first, second) return none, none, %4"
    )


def test_gradients_are_shared_and_the_gradient_is_the_first_factor():
    program = trace(lambda x: b.exp(x) * b.exp(x), ["x"])
    assert derivative(program, ["grad"]).text == (
        "(x, grad) %2 = exp(%0); %3 = mul(%1, %2); %4 = add(%3, %3); %5 = mul(%4, %2); return %5"
    )


def test_constants_and_outputs_have_the_inputs_dtype_and_shape():
    program = trace(lambda x, p: (b.where(x > 0, 1.0, 2.0), p, 3.0), ["x", "p"])
    x, p = torch.randn(4, 3, dtype=torch.bfloat16), torch.randn(3, dtype=torch.bfloat16)
    for each in evaluate_tensors(program, [x, p]):
        assert each.dtype == torch.bfloat16
        assert each.shape == (4, 3)
    assert {each.shape for each in evaluate_arrays(program, [x.float(), p.float()])} == {(4, 3)}

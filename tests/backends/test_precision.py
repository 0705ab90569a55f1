"""Protects half precision and autocast: as accurate as eager, and explain names the backend."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

import rnnjit
from rnnjit.testing.tolerances import Expected, errors_of, judge, largest

T, B, I, H = 20, 3, 8, 12
HALVES = [torch.bfloat16, torch.float16]


def make(dtype=torch.float32, **options):
    torch.manual_seed(0)
    return nn.RNN(I, H, **options).to(dtype)


def inputs(dtype, packed=False):
    torch.manual_seed(1)
    x = torch.randn(T, B, I).to(dtype)
    return pack_padded_sequence(x, torch.tensor([T, 9, 4])) if packed else x


def results(module, x):
    """y, h_n and the gradients by x and the weights."""
    leaf = (x.data if isinstance(x, nn.utils.rnn.PackedSequence) else x).requires_grad_()
    y, h_n = module(x)
    y = y.data if isinstance(y, nn.utils.rnn.PackedSequence) else y
    loss = y.float().square().sum() + h_n.float().sum()
    grads = torch.autograd.grad(loss, [leaf, *module.parameters()])
    return y.detach(), h_n.detach(), *grads


@pytest.mark.parametrize("packed", [False, True], ids=["dense", "packed"])
@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}], ids=str)
def test_half_precision_modules_are_as_exact_as_eager(options, dtype, packed):
    rnn = make(dtype, **options)
    found = results(rnnjit.compile(rnn), inputs(dtype, packed))
    eager = results(rnn, inputs(dtype, packed))
    wide = inputs(dtype, packed)
    truth = results(copy.deepcopy(rnn).double(), wide.to(torch.float64))
    for index, (got, own, exact) in enumerate(zip(found, eager, truth, strict=True)):
        expected = Expected(own, exact, largest(errors_of(own, exact)), largest(exact))
        judge(f"result {index}", "forward" if index < 2 else "backward", got, expected)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_explain_says_who_runs_half_precision(dtype):
    report = rnnjit.explain(rnnjit.compile(make(dtype)), inputs(dtype)).calls[0]
    reasons = {verdict.backend.name: verdict.reasons for verdict in report.verdicts}
    assert report.problem.dtype == dtype
    assert not reasons[report.chosen]
    assert any(str(dtype) in reason for reason in reasons["numba"])


def test_a_named_backend_that_cannot_says_so():
    module = rnnjit.compile(make(torch.bfloat16), backend="numba")
    with pytest.raises(rnnjit.UnsupportedError, match=r"torch\.bfloat16 is not supported"):
        module(inputs(torch.bfloat16))


@pytest.mark.parametrize("packed", [False, True], ids=["dense", "packed"])
@pytest.mark.parametrize("inner", [torch.float32, torch.bfloat16], ids=str)
def test_autocast_is_eager_s(inner, packed):
    rnn = make(num_layers=2)
    fast = rnnjit.compile(rnn)
    found, expected = [], []
    for module, collected in ((fast, found), (rnn, expected)):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            collected += results(module, inputs(inner, packed))
    for ours, eager in zip(found, expected, strict=True):
        assert ours.dtype == eager.dtype
        assert torch.equal(ours, eager)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        report = rnnjit.explain(fast, inputs(inner, packed)).calls[0]
    assert report.chosen == "torch"
    assert "autocast" in report.note


def test_autocast_switched_off_inside_is_compiled_again():
    fast = rnnjit.compile(make())
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.autocast("cpu", enabled=False):
        assert rnnjit.explain(fast, inputs(torch.float32)).calls[0].chosen == "numba"
        assert fast(inputs(torch.float32))[0].dtype == torch.float32

"""Protects the kit's strength: backends wrong in one place must fail, and healthy ones pass.

The quick subset must catch every defect, by the checks that are meant to.
"""

import pytest
import torch
from torch.nn import functional as F

from rnnjit.backend import LayerOutput
from rnnjit.ir import RNN_RELU, RNN_TANH
from rnnjit.reference import ReferenceBackend, layer_forward
from rnnjit.testing import RecomputeBackend, run
from rnnjit.testing.suite import pairs

VALUES = {"forward", "gradients"}


@pytest.mark.parametrize("quick", [True, pytest.param(False, marks=pytest.mark.full)])
@pytest.mark.parametrize("backend", [ReferenceBackend(), RecomputeBackend()])
def test_healthy_backends_pass(backend, quick):
    assert run(backend, quick=quick).failures == ()


class Broken(RecomputeBackend):
    """Computes nn.RNN alone; `test_meta_gated.py` breaks the other layers."""

    name = "broken"
    quantized = False

    def why_not_cell(self, cell):
        return [] if cell.is_elman else ["only nn.RNN is supported"]


class BiasTwice(Broken):
    """Adds b_ih in the place of b_hh."""

    def forward(self, layer, rows, x, hx, weights, keep):
        if layer.bias:
            weights = list(weights)
            weights[3::4] = weights[2::4]
        return super().forward(layer, rows, x, hx, weights, keep)


class NoHiddenBias(Broken):
    def forward(self, layer, rows, x, hx, weights, keep):
        if layer.bias:
            weights = list(weights)
            weights[3::4] = [torch.zeros_like(bias) for bias in weights[3::4]]
        return super().forward(layer, rows, x, hx, weights, keep)


class LastStepDropped(Broken):
    """Leaves the last time step at the state of the one before it."""

    def forward(self, layer, rows, x, hx, weights, keep):
        y, h_n, *_ = super().forward(layer, rows, x, hx, weights, keep)
        sizes, H = rows.sizes, layer.hidden_size
        if rows.T > 1:
            size = sizes[-1]
            before = rows.N - sizes[-1] - sizes[-2]
            y[-size:, :H] = y[before : before + size, :H]
            h_n[0][0, :size] = y[-size:, :H]
        return LayerOutput(y, h_n)


class PaddedNotPacked(Broken):
    """Runs a packed batch as if it were padded: states go on past their sequence's end."""

    def forward(self, layer, rows, x, hx, weights, keep):
        if rows.batch_sizes is None:
            return super().forward(layer, rows, x, hx, weights, keep)
        mask = torch.arange(rows.B) < rows.batch_sizes[:, None]
        padded = x.new_zeros(rows.T, rows.B, layer.input_size)
        padded[mask] = x
        dense = rows._replace(N=rows.T * rows.B, batch_sizes=None)
        y, h_n, *_ = super().forward(layer, dense, padded.flatten(0, 1), hx, weights, keep)
        return LayerOutput(y[mask.flatten()], h_n)


class DirectionsSwapped(Broken):
    def forward(self, layer, rows, x, hx, weights, keep):
        y, h_n, *_ = super().forward(layer, rows, x, hx, weights, keep)
        return LayerOutput(y.roll(layer.hidden_size, dims=1), h_n)


class ReverseStateFromLastStep(Broken):
    """Takes h_n of direction 1 from the rows at which it starts, not from those where it ends."""

    def forward(self, layer, rows, x, hx, weights, keep):
        y, h_n, *_ = super().forward(layer, rows, x, hx, weights, keep)
        if layer.num_directions == 2:
            start = 0
            for size in rows.sizes:
                h_n[0][1, :size] = y[start : start + size, layer.hidden_size :]
                start += size
        return LayerOutput(y, h_n)


class NoInitialStateGradient(Broken):
    def backward(self, *args):
        grads = super().backward(*args)
        return grads._replace(hx=tuple(g if g is None else torch.zeros_like(g) for g in grads.hx))


class LastStateGradientIgnored(Broken):
    def backward(self, layer, rows, x, hx, weights, output, grad_y, grad_h_n, needs):
        grad_y = torch.zeros_like(output.y) if grad_y is None else grad_y
        return super().backward(layer, rows, x, hx, weights, output, grad_y, (None,), needs)


class HiddenWeightGradientOneStepLate(Broken):
    """Sums dz_t h_t' where it should be dz_t h_{t-1}'."""

    def backward(self, layer, rows, x, hx, weights, output, grad_y, grad_h_n, needs):
        grads = super().backward(layer, rows, x, hx, weights, output, grad_y, grad_h_n, needs)
        if layer.num_directions == 2 or not needs.weights[1]:
            return grads
        # With the projected input in the place of x, the gradient of x is that of z.
        z = F.linear(x, weights[0]).requires_grad_()
        identity = torch.eye(layer.hidden_size, dtype=x.dtype)
        with torch.enable_grad():
            y, h_n = layer_forward(layer, rows, z, hx, [identity, *weights[1:]])
            loss = sum(
                (value * grad).sum()
                for value, grad in zip((y, *h_n), (grad_y, *grad_h_n), strict=True)
                if grad is not None
            )
        dz = torch.autograd.grad(loss, z)[0]
        late = (grads.weights[0], dz.T @ output.y, *grads.weights[2:])
        return grads._replace(weights=late)


class NaNSwallowed(Broken):
    def forward(self, layer, rows, x, hx, weights, keep):
        return super().forward(layer, rows, x.clamp(-9, 9).nan_to_num(-9), hx, weights, keep)


class ReluDerivativeLosesNaN(Broken):
    """Passes the gradient where y > 0; eager stops it where y <= 0, which NaN is not."""

    def backward(self, layer, rows, x, hx, weights, output, grad_y, grad_h_n, needs):
        if layer.cell == RNN_RELU and grad_y is not None:
            grad_y = grad_y.where(output.y > 0, 0)
        return super().backward(layer, rows, x, hx, weights, output, grad_y, grad_h_n, needs)


class LastColumnUnwritten(Broken):
    def forward(self, layer, rows, x, hx, weights, keep):
        y, h_n, *_ = super().forward(layer, rows, x, hx, weights, keep)
        partly = torch.empty_like(y)
        partly[:, :-1] = y[:, :-1]
        return LayerOutput(partly, h_n)


class WeightStridesIgnored(Broken):
    """Reads the memory of every weight as if it were contiguous."""

    def forward(self, layer, rows, x, hx, weights, keep):
        weights = [w.as_strided(w.shape, torch.empty(w.shape).stride()) for w in weights]
        return super().forward(layer, rows, x, hx, weights, keep)


class SloppyTanh(Broken):
    """A tanh that is good to `error`."""

    def __init__(self, error):
        self.error = error

    def forward(self, layer, rows, x, hx, weights, keep):
        y, h_n, *_ = super().forward(layer, rows, x, hx, weights, keep)
        factor = 1 - self.error if layer.cell == RNN_TANH else 1
        return LayerOutput(y * factor, tuple(state * factor for state in h_n))


class SinglePrecision(Broken):
    """Computes float64 in float32."""

    def forward(self, layer, rows, x, hx, weights, keep):
        weights, hx = [w.float() for w in weights], tuple(state.float() for state in hx)
        y, h_n, *_ = super().forward(layer, rows, x.float(), hx, weights, keep)
        return LayerOutput(y.to(x.dtype), tuple(state.to(x.dtype) for state in h_n))


class SecondDerivativeLost(ReferenceBackend):
    def forward(self, layer, rows, x, hx, weights, keep):
        if x.requires_grad:
            x = x.view_as(x)
            x.register_hook(torch.Tensor.detach)
        return super().forward(layer, rows, x, hx, weights, keep)


@pytest.mark.parametrize(
    ("backend", "caught_by"),
    [
        (BiasTwice(), VALUES),
        (NoHiddenBias(), VALUES),
        (LastStepDropped(), VALUES),
        (PaddedNotPacked(), VALUES),
        (DirectionsSwapped(), VALUES),
        (ReverseStateFromLastStep(), VALUES),
        (NoInitialStateGradient(), {"gradients"}),
        (LastStateGradientIgnored(), {"gradients"}),
        (HiddenWeightGradientOneStepLate(), {"gradients"}),
        (LastColumnUnwritten(), VALUES),
        (SloppyTanh(1e-4), VALUES),
        (SloppyTanh(2e-6), VALUES),
        (SinglePrecision(), VALUES),
    ],
)
def test_wrong_numbers_fail(backend, caught_by, failed_checks):
    assert caught_by <= failed_checks(backend)


def failed_in_bf16(backend):
    """The names of the checks of values that a backend fails on nn.RNN in bfloat16."""
    failed = set()
    for name, check, case in pairs():
        elman = case.user_cell is None and case.cell.is_elman
        if case.dtype is torch.bfloat16 and elman and name in VALUES:
            try:
                check.run(backend, case)
            except AssertionError:
                failed.add(name)
    return failed


@pytest.mark.parametrize(
    ("backend", "caught_by"),
    [
        (RecomputeBackend(), set()),
        (BiasTwice(), VALUES),
        (NoHiddenBias(), VALUES),
        (LastStepDropped(), VALUES),
        (PaddedNotPacked(), VALUES),
        (DirectionsSwapped(), VALUES),
        (NoInitialStateGradient(), {"gradients"}),
        (LastStateGradientIgnored(), {"gradients"}),
        (HiddenWeightGradientOneStepLate(), {"gradients"}),
        (NaNSwallowed(), VALUES),
        (LastColumnUnwritten(), VALUES),
        (SloppyTanh(0.03), VALUES),
    ],
)
def test_wrong_numbers_fail_in_bfloat16(backend, caught_by):
    assert failed_in_bf16(backend) == caught_by


@pytest.mark.parametrize(
    ("backend", "caught_by"),
    [
        (NaNSwallowed(), VALUES),
        (ReluDerivativeLosesNaN(), {"gradients"}),
        (WeightStridesIgnored(), VALUES),
        (SecondDerivativeLost(), {"double_backward"}),
    ],
)
def test_numbers_that_are_wrong_now_and_then_fail(backend, caught_by, failed_checks):
    assert failed_checks(backend) == caught_by

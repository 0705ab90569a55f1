"""Backends that compute rightly and misbehave in one way each must fail the kit.

Every defect must be caught by the quick subset already, and by the check that is meant to.
"""

import pytest
import torch

from rnnjit.backend import LayerOutput
from rnnjit.reference import ReferenceBackend
from rnnjit.testing import RecomputeBackend


class Broken(RecomputeBackend):
    name = "broken"


class StaleWeights(Broken):
    """Keeps a copy of weights until torch says that they have another version."""

    def __init__(self):
        self.kept = {}

    def current(self, weights):
        key = tuple((id(weight), weight._version) for weight in weights)
        # The originals are kept too, lest their ids be given to others.
        return self.kept.setdefault(key, ([w.detach().clone() for w in weights], weights))[0]

    def forward(self, layer, rows, x, h0, weights, keep):
        return super().forward(layer, rows, x, h0, self.current(weights), keep)


class StateIsViewOfOutput(Broken):
    def forward(self, layer, rows, x, h0, weights, keep):
        y, h_n, _ = super().forward(layer, rows, x, h0, weights, keep)
        if layer.num_directions == 1 and rows.batch_sizes is None and not keep:
            h_n = y[-rows.B :].view(h_n.shape)
        return LayerOutput(y, h_n)


class OutputBufferReused(Broken):
    def __init__(self):
        self.buffers = {}

    def forward(self, layer, rows, x, h0, weights, keep):
        y, h_n, _ = super().forward(layer, rows, x, h0, weights, keep)
        buffer = self.buffers.setdefault((y.shape, y.dtype, id(weights[0])), (y, weights))[0]
        # Written where autograd does not see it, as a kernel would.
        buffer.data.copy_(y)
        return LayerOutput(buffer.detach(), h_n)


class InputWrittenTo(Broken):
    def forward(self, layer, rows, x, h0, weights, keep):
        output = super().forward(layer, rows, x, h0, weights, keep)
        x.data.mul_(2)
        return output


class IncomingGradientWrittenTo(Broken):
    def backward(self, layer, rows, x, h0, weights, output, grad_y, grad_h_n, needs):
        grads = super().backward(layer, rows, x, h0, weights, output, grad_y, grad_h_n, needs)
        if grad_h_n is not None:
            grad_h_n.mul_(2)
        return grads


class Nondeterministic(Broken):
    """Every other call differs in the last bit."""

    calls = 0

    def forward(self, layer, rows, x, h0, weights, keep):
        y, h_n, _ = super().forward(layer, rows, x, h0, weights, keep)
        self.calls += 1
        if self.calls % 2:
            y = y.nextafter(torch.zeros_like(y))
        return LayerOutput(y, h_n)


class SavedUsedUp(Broken):
    """Spoils what it saved on the first way back."""

    def forward(self, layer, rows, x, h0, weights, keep):
        output = super().forward(layer, rows, x, h0, weights, keep)
        return output._replace(saved=(x.clone(),))

    def backward(self, layer, rows, x, h0, weights, output, grad_y, grad_h_n, needs):
        (saved,) = output.saved
        grads = super().backward(layer, rows, saved, h0, weights, output, grad_y, grad_h_n, needs)
        saved.zero_()
        return grads


class WhyNotRaises(Broken):
    def why_not(self, spec, problem):
        raise KeyError(spec.nonlinearity)


class AcceptsThenRaises(Broken):
    def forward(self, layer, rows, x, h0, weights, keep):
        if layer.cell == "relu":
            raise NotImplementedError("relu")
        return super().forward(layer, rows, x, h0, weights, keep)


class DeclinesRequired(Broken):
    def why_not(self, spec, problem):
        return ["relu is not supported"] if spec.nonlinearity == "relu" else []


class ReasonIsNoList(Broken):
    def why_not(self, spec, problem):
        return "relu is not supported" if spec.nonlinearity == "relu" else ""


class ChangesItsMind(Broken):
    asked = 0

    def why_not(self, spec, problem):
        self.asked += 1
        return ["asked too often"] if self.asked % 5 == 0 else []


class OutputSavedForBackward(ReferenceBackend):
    """Lets autograd save y itself, which the caller may overwrite."""

    def forward(self, layer, rows, x, h0, weights, keep):
        y, h_n, _ = super().forward(layer, rows, x, h0, weights, keep)
        return LayerOutput(torch.relu(y) if layer.cell == "relu" else y, h_n)


@pytest.mark.parametrize(
    ("backend", "caught_by"),
    [
        (StaleWeights(), "stale_weights"),
        (StateIsViewOfOutput(), "fresh_outputs"),
        (OutputBufferReused(), "interleaved_calls"),
        (Nondeterministic(), "repeated"),
        (SavedUsedUp(), "repeated"),
        (OutputSavedForBackward(), "overwritten_output"),
        (DeclinesRequired(), "refusal"),
        (ReasonIsNoList(), "refusal"),
    ],
)
def test_one_check_catches_it_and_no_other(backend, caught_by, failed_checks):
    assert failed_checks(backend) == {caught_by}


@pytest.mark.parametrize(
    ("backend", "caught_by"),
    [
        (InputWrittenTo(), "inputs_untouched"),
        (IncomingGradientWrittenTo(), "inputs_untouched"),
        (WhyNotRaises(), "refusal"),
        (AcceptsThenRaises(), "refusal"),
        (ChangesItsMind(), "refusal"),
    ],
)
def test_its_check_catches_it(backend, caught_by, failed_checks):
    assert caught_by in failed_checks(backend)

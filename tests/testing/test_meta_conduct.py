"""Protects the kit's strength: backends with right values that misbehave in one way must fail.

The quick subset must catch every defect, by the check that is meant to.
"""

import pytest
import torch

from rnnjit.backend import LayerOutput
from rnnjit.ir import OPERATIONS, RNN_RELU, RNN_TANH
from rnnjit.reference import ReferenceBackend
from rnnjit.spec import Rows
from rnnjit.testing import CHECKS, RecomputeBackend, run


class Broken(RecomputeBackend):
    """Computes nn.RNN alone; `test_meta_gated.py` breaks the other layers."""

    name = "broken"
    quantized = False

    def why_not_cell(self, cell):
        return [] if cell.is_elman else ["only nn.RNN is supported"]


class StaleWeights(Broken):
    """Keeps a copy of weights until torch says that they have another version."""

    def __init__(self):
        self.kept = {}

    def current(self, weights):
        key = tuple((id(weight), weight._version) for weight in weights)
        # The originals are kept too, lest their ids be given to others.
        return self.kept.setdefault(key, ([w.detach().clone() for w in weights], weights))[0]

    def forward(self, layer, rows, x, hx, weights, keep):
        return super().forward(layer, rows, x, hx, self.current(weights), keep)


class StateIsViewOfOutput(Broken):
    def forward(self, layer, rows, x, hx, weights, keep):
        y, h_n, *_ = super().forward(layer, rows, x, hx, weights, keep)
        if layer.num_directions == 1 and rows.batch_sizes is None and not keep:
            h_n = (y[-rows.B :].view(h_n[0].shape),)
        return LayerOutput(y, h_n)


class OutputBufferReused(Broken):
    def __init__(self):
        self.buffers = {}

    def forward(self, layer, rows, x, hx, weights, keep):
        y, h_n, *_ = super().forward(layer, rows, x, hx, weights, keep)
        buffer = self.buffers.setdefault((y.shape, y.dtype, id(weights[0])), (y, weights))[0]
        # Written where autograd does not see it, as a kernel would.
        buffer.data.copy_(y)
        return LayerOutput(buffer.detach(), h_n)


class InputWrittenTo(Broken):
    def forward(self, layer, rows, x, hx, weights, keep):
        output = super().forward(layer, rows, x, hx, weights, keep)
        x.data.mul_(2)
        return output


class IncomingGradientWrittenTo(Broken):
    def backward(self, layer, rows, x, hx, weights, output, grad_y, grad_h_n, needs):
        grads = super().backward(layer, rows, x, hx, weights, output, grad_y, grad_h_n, needs)
        if grad_h_n[0] is not None:
            grad_h_n[0].mul_(2)
        return grads


class Nondeterministic(Broken):
    """Every other call differs in the last bit."""

    calls = 0

    def forward(self, layer, rows, x, hx, weights, keep):
        y, h_n, *_ = super().forward(layer, rows, x, hx, weights, keep)
        self.calls += 1
        if self.calls % 2:
            y = y.nextafter(torch.zeros_like(y))
        return LayerOutput(y, h_n)


class SavedUsedUp(Broken):
    """Spoils what it saved on the first way back."""

    def forward(self, layer, rows, x, hx, weights, keep):
        output = super().forward(layer, rows, x, hx, weights, keep)
        return output._replace(saved=(x.clone(),))

    def backward(self, layer, rows, x, hx, weights, output, grad_y, grad_h_n, needs):
        (saved,) = output.saved
        grads = super().backward(layer, rows, saved, hx, weights, output, grad_y, grad_h_n, needs)
        saved.zero_()
        return grads


class WhyNotRaises(Broken):
    def why_not(self, spec, problem):
        raise KeyError(spec.cell.name)


class AcceptsThenRaises(Broken):
    def forward(self, layer, rows, x, hx, weights, keep):
        if layer.cell == RNN_RELU:
            raise NotImplementedError("relu")
        return super().forward(layer, rows, x, hx, weights, keep)


class DeclinesRequired(Broken):
    def why_not(self, spec, problem):
        return ["relu is not supported"] if spec.cell == RNN_RELU else []


class ReasonIsNoList(Broken):
    def why_not(self, spec, problem):
        return "relu is not supported" if spec.cell == RNN_RELU else ""


class ChangesItsMind(Broken):
    asked = 0

    def why_not(self, spec, problem):
        self.asked += 1
        return ["asked too often"] if self.asked % 5 == 0 else []


class WhyNotCellRaises(Broken):
    def why_not_cell(self, cell):
        raise KeyError(cell.name)


class WhyNotCellIsNoList(Broken):
    def why_not_cell(self, cell):
        return "relu is not supported" if cell == RNN_RELU else ""


class DeclinesRequiredCell(Broken):
    def why_not_cell(self, cell):
        return ["relu is not supported"] if cell == RNN_RELU else []


class LacksAnOperation(Broken):
    operations = RNN_TANH.operations


class DeclinesRequiredDtype(Broken):
    dtypes = (torch.float32,)


class DevicesAreAString(Broken):
    devices = "cpu"


class DtypesAreAList(Broken):
    dtypes = [torch.float32, torch.float64]  # noqa: RUF012 - as an author may write it


class OperationsAreATuple(Broken):
    operations = tuple(OPERATIONS)


class StateIsABareTensor(Broken):
    def forward(self, layer, rows, x, hx, weights, keep):
        output = super().forward(layer, rows, x, hx, weights, keep)
        return output._replace(h_n=output.h_n[0])


class StatesInAList(Broken):
    def forward(self, layer, rows, x, hx, weights, keep):
        output = super().forward(layer, rows, x, hx, weights, keep)
        return output._replace(h_n=list(output.h_n))


class OneStateTooMany(Broken):
    def forward(self, layer, rows, x, hx, weights, keep):
        output = super().forward(layer, rows, x, hx, weights, keep)
        return output._replace(h_n=(*output.h_n, output.h_n[0].clone()))


class NoStates(Broken):
    def forward(self, layer, rows, x, hx, weights, keep):
        return super().forward(layer, rows, x, hx, weights, keep)._replace(h_n=())


class DifferentiableStateIsABareTensor(ReferenceBackend):
    def forward(self, layer, rows, x, hx, weights, keep):
        output = super().forward(layer, rows, x, hx, weights, keep)
        return output._replace(h_n=output.h_n[0])


class WeightGradientMissing(Broken):
    def backward(self, *args):
        grads = super().backward(*args)
        return grads._replace(weights=grads.weights[:-1])


class StateGradientMissing(Broken):
    def backward(self, *args):
        return super().backward(*args)._replace(hx=())


class StateGradientIsABareTensor(Broken):
    def backward(self, *args):
        grads = super().backward(*args)
        return grads._replace(hx=grads.hx[0])


class OutputSavedForBackward(ReferenceBackend):
    """Lets autograd save y itself, which the caller may overwrite."""

    def shortcut(self, spec, problem, y_shape):
        if spec.cell != RNN_RELU or spec.num_layers > 1 or spec.batch_first:
            return None
        layer, rows = spec.layer(0), Rows(problem.T, problem.B, problem.N)

        def run(x, hx, weights):
            y, h_n, *_ = self.forward(layer, rows, x.flatten(0, 1), hx, weights, True)
            return torch.relu(y.view(y_shape)), h_n

        return run


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
        (WhyNotCellIsNoList(), "refusal"),
        (DeclinesRequiredCell(), "refusal"),
        (LacksAnOperation(), "refusal"),
        (DeclinesRequiredDtype(), "refusal"),
        (DevicesAreAString(), "refusal"),
        (DtypesAreAList(), "refusal"),
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
        (WhyNotCellRaises(), "refusal"),
        (OperationsAreATuple(), "refusal"),
        (AcceptsThenRaises(), "refusal"),
        (ChangesItsMind(), "refusal"),
    ],
)
def test_its_check_catches_it(backend, caught_by, failed_checks):
    assert caught_by in failed_checks(backend)


@pytest.mark.parametrize(
    ("backend", "words"),
    [
        (StateIsABareTensor(), "h_n: expected a tuple of 1 states, got Tensor"),
        (StatesInAList(), "h_n: expected a tuple of 1 states, got list"),
        (OneStateTooMany(), "h_n: expected a tuple of 1 states, got 2 of them"),
        (NoStates(), "h_n: expected a tuple of 1 states, got 0 of them"),
        (DifferentiableStateIsABareTensor(), "h_n: expected a tuple of 1 states, got Tensor"),
    ],
)
def test_states_of_another_form_fail_every_check(backend, words):
    by_cell = run(backend, quick=True).by_cell
    results = [result for name in ("tanh", "relu") for result in by_cell[name].results]
    assert {result.outcome for result in results} == {"failed"}
    assert all(words in result.message for result in results)


@pytest.mark.parametrize(
    ("backend", "words"),
    [
        (WeightGradientMissing(), "the gradients of weights: expected 4 of them, got 3"),
        (StateGradientMissing(), "the gradients of hx: expected 1 of them, got 0"),
        (StateGradientIsABareTensor(), "the gradients of hx: expected 1 of them, got Tensor"),
    ],
)
def test_gradients_of_another_form_fail_every_check_that_takes_any(backend, words):
    report = run(backend, quick=True)
    failed = {result.check for result in report.failures}
    assert failed == CHECKS.keys() - {"forward", "fresh_outputs", "double_backward", "all_states"}
    assert any(words in result.message for result in report.failures)

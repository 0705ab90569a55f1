"""Protects the comparison of one call on every backend: the call, errors, and the findings."""

import math

import pytest
import torch
from torch import nn

import rnnjit
from rnnjit.frontend.capture import capture
from rnnjit.reference import ReferenceBackend
from rnnjit.runtime.timing import Timing
from rnnjit.tools.call import random_call
from rnnjit.tools.comparison import (
    Comparison,
    PassTimes,
    Result,
    compare_call,
    largest_error,
    pass_times,
    steps,
)
from rnnjit.tools.progress import Progress


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU])
def test_gradients_of_a_call_are_those_of_backward(packed, batch_first, kind):
    rnn = kind(3, 4, num_layers=2, bidirectional=True, batch_first=batch_first)
    call = random_call(capture(rnn), 5, 6, packed=packed)
    gradients = call.gradients(rnn)
    pairs = zip(call.outputs(rnn), (call.grad_y, *call.grad_h_n), strict=True)
    sum((output * grad).sum() for output, grad in pairs).backward()
    for found, leaf in zip(gradients, (call.x, *call.hx, *rnn.parameters()), strict=True):
        torch.testing.assert_close(found, leaf.grad)


def test_a_packed_call_has_sequences_of_unequal_length_and_the_longest_is_t():
    call = random_call(rnnjit.RNNSpec(3, 4), 20, 8, packed=True)
    assert len(call.packed.batch_sizes) == 20
    assert call.x.shape[0] == call.problem(needs_grad=True).N < 20 * 8


def test_random_calls_repeat_and_leave_the_global_generator_alone():
    before = torch.get_rng_state()
    first, second = (random_call(rnnjit.RNNSpec(3, 4), 5, 2, seed=7) for _ in range(2))
    assert torch.equal(first.x, second.x)
    assert torch.equal(before, torch.get_rng_state())
    assert first.to(torch.float64).x.requires_grad


@pytest.mark.parametrize(
    ("found", "exact", "error"),
    [
        ([1.0, math.nan], [1.5, math.nan], 0.5),
        ([math.inf], [math.inf], 0.0),
        ([math.inf], [1.0], math.inf),
        ([2.0, math.nan], [0.0, 0.0], math.nan),
    ],
)
def test_largest_error(found, exact, error):
    tensors = [torch.zeros(2)], [torch.zeros(2, dtype=torch.float64)]
    tensors[0].append(torch.tensor(found))
    tensors[1].append(torch.tensor(exact, dtype=torch.float64))
    assert largest_error(*tensors) == pytest.approx(error, nan_ok=True)


def test_pass_times_leave_modules_in_training_mode():
    rnn = nn.RNN(2, 3)
    times = pass_times({"rnn": rnn}, random_call(rnnjit.RNNSpec(2, 3), 2, 2), rounds=1)
    assert times["rnn"].forward.median > 0
    assert times["rnn"].both.median > 0
    assert rnn.training


class Declining(type(rnnjit.backends()["eager"])):
    """Takes no call that needs gradients, and says so."""

    name = "declining"

    def why_not(self, spec, problem):
        return ["it has no backward pass"] if problem.needs_grad else []


class Crashing(ReferenceBackend):
    """Fails at every call."""

    name = "crashing"

    def forward(self, *args):
        raise ZeroDivisionError("in the kernel")


class Counted(Progress):
    """Counts the steps that it is told of."""

    steps = 0

    def step(self, what=""):
        self.steps += 1


def test_compare_tells_declining_from_crashing_and_counts_its_steps(monkeypatch):
    eager = rnnjit.backends()["eager"]
    installed = {"declining": Declining(), "crashing": Crashing(), "eager": eager}
    monkeypatch.setattr("rnnjit.dispatch.registry._installed", lambda: installed)
    call, progress = random_call(rnnjit.RNNSpec(2, 3), 4, 2), Counted("compare")
    found = compare_call(nn.RNN(2, 3), call, rounds=2, progress=progress)
    assert progress.steps == steps(2)
    declining, crashing = found.results
    assert declining.reasons == ("it has no backward pass",)
    assert crashing.failure == "ZeroDivisionError: in the kernel"
    assert [found.speedup(result) for result in (declining, crashing)] == [None, None]
    assert found.eager.values_error < 1e-6
    assert found.eager.name == "nn.RNN"
    assert found.speedup(found.eager) == (1.0, 1.0)
    assert (found.auto_forward, found.auto_both) == ("declining", "crashing")


def test_how_many_times_faster_is_told_by_least_samples():
    """A neighbour slows most samples of one row and few of the other: the medians would mislead."""

    def result(name, forward, both):
        return Result(name, 0.0, 0.0, PassTimes(Timing.of(forward, 1), Timing.of(both, 1)))

    eager = result("nn.RNN", [2.0, 9.0, 9.0], [6.0, 6.0, 6.0])
    other = result("other", [1.0, 1.0, 1.0], [9.0, 3.0, 9.0])
    problem = rnnjit.Problem(torch.float32, "cpu", 1, 1, 1, False, True)
    found = Comparison(rnnjit.RNNSpec(2, 3), problem, eager, (other,), "other", "other")
    assert found.speedup(other) == (2.0, 2.0)

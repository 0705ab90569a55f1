"""Protects `rnnjit.adapt`: loops of other people's classes are compiled, and checked first."""

import copy
import pickle

import pytest
import torch
from torch import nn
from user_cells import outcome

import rnnjit
from rnnjit.reference import ReferenceBackend

REFERENCE = ReferenceBackend()


class CTRNN(nn.Module):
    """A loop as tutorials write it: time first, outputs and the last state."""

    def __init__(self, input_size, hidden_size, alpha=0.3, noise=0.0):
        super().__init__()
        self.input_size, self.hidden_size = input_size, hidden_size
        self.alpha, self.noise = alpha, noise
        self.input2h = nn.Linear(input_size, hidden_size)
        self.h2h = nn.Linear(hidden_size, hidden_size)

    def recurrence(self, input, hidden):  # noqa: A002 - as tutorials have it
        drive = torch.relu(self.input2h(input) + self.h2h(hidden))
        noise = self.noise * torch.randn_like(hidden) if self.training else 0.0
        return hidden * (1 - self.alpha) + drive * self.alpha + noise

    def forward(self, input, hidden=None):  # noqa: A002 - as above
        if hidden is None:
            hidden = input.new_zeros(input.shape[1], self.hidden_size)
        output = []
        for t in range(input.size(0)):
            hidden = self.recurrence(input[t], hidden)
            output.append(hidden)
        return torch.stack(output), hidden


class BatchFirst(nn.Module):
    """Another order of everything, two states, and only outputs returned."""

    def __init__(self, n_in, n):
        super().__init__()
        self.n_in, self.n = n_in, n
        self.w, self.u = nn.Linear(n_in, n), nn.Linear(n, n, bias=False)
        self.scale = nn.Parameter(torch.linspace(0.5, 1.5, n))

    def step(self, v, a, x):
        v = 0.9 * v + self.w(x) + self.u(torch.tanh(v)) - a
        a = 0.5 * a + 0.1 * v
        return a, torch.tanh(v) * self.scale, v

    def forward(self, x, state=None):
        v, a = state or (x.new_zeros(len(x), self.n), x.new_zeros(len(x), self.n))
        found = []
        for row in x.unbind(1):
            a, y, v = self.step(v, a, row)
            found.append(y)
        return torch.stack(found, 1)


class Readout(CTRNN):
    """A loop that does more than call its step."""

    def forward(self, input, hidden=None):  # noqa: A002 - as above
        output, hidden = super().forward(input, hidden)
        return output + 0.01, hidden


HOW = rnnjit.adapt("recurrence")
HOW_FIRST = rnnjit.adapt(
    "step",
    arguments=("v", "a", "x"),
    results=("a", "y", "v"),
    returns=("y",),
    batch_first=True,
    input_size="w.in_features",
    hidden_size="n",
)
CELLS = {CTRNN: HOW, BatchFirst: HOW_FIRST}


@pytest.mark.parametrize(
    "backend",
    [pytest.param(REFERENCE, id="reference"), pytest.param("auto", marks=pytest.mark.full)],
)
def test_a_loop_gives_its_own_values_gradients_and_draws(backend):
    torch.manual_seed(0)
    model = CTRNN(3, 6, noise=0.2).double()
    fast = rnnjit.compile(model, backend=backend, cells=CELLS)
    assert isinstance(fast, CTRNN)
    assert fast.h2h.weight is model.h2h.weight
    x = torch.randn(7, 4, 3).double()
    h = torch.randn(4, 6).double()
    for given in ((x,), (x, h)):
        expected = outcome(model, *given)
        after = torch.get_rng_state()
        for _ in range(2):
            torch.testing.assert_close(outcome(fast, *given), expected)
            assert torch.equal(torch.get_rng_state(), after)
    for each in (model, fast):
        each.eval()
        each.alpha = 0.8
    torch.testing.assert_close(outcome(fast, x, hidden=h), outcome(model, x, hidden=h))


def test_another_layout():
    torch.manual_seed(0)
    model = nn.Sequential(BatchFirst(3, 5), nn.Linear(5, 2)).double()
    fast = rnnjit.compile(model, backend=REFERENCE, cells=CELLS)
    x = torch.randn(4, 7, 3).double()
    torch.testing.assert_close(outcome(fast, x), outcome(model, x))
    state = torch.randn(4, 5).double(), torch.randn(4, 5).double()
    torch.testing.assert_close(fast[0](x, state), model[0](x, state))


def test_copies_and_in_place():
    model = CTRNN(3, 6)
    x = torch.randn(5, 2, 3)
    expected = model(x)
    fast = rnnjit.compile(model, backend=REFERENCE, cells=CELLS)
    for each in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
        torch.testing.assert_close(each(x), expected)
        assert type(each) is type(fast)
    assert rnnjit.compile(model, inplace=True, backend=REFERENCE, cells=CELLS) is model
    assert type(model) is type(fast)
    torch.testing.assert_close(model(x), expected)
    again = rnnjit.compile(model, backend="eager", cells=CELLS)
    torch.testing.assert_close(again(x), expected, rtol=0, atol=0)


WRONG = {
    "more than the step": (Readout, HOW),
    "outputs alone": (CTRNN, rnnjit.adapt("recurrence", returns=("y",))),
    "batch first": (CTRNN, rnnjit.adapt("recurrence", batch_first=True)),
}


@pytest.mark.parametrize(("cls", "how"), WRONG.values(), ids=WRONG)
def test_a_loop_that_is_not_as_described_raises(cls, how):
    fast = rnnjit.compile(cls(3, 6), backend=REFERENCE, cells={cls: how})
    for _ in range(2):
        with pytest.raises(ValueError, match=r"is not the loop over \w+\.recurrence"):
            fast(torch.randn(4, 4, 3))


class OtherGradients(CTRNN):
    """The loop cuts a gradient that the step has."""

    def forward(self, input, hidden=None):  # noqa: A002 - as above
        output, hidden = super().forward(input.detach(), hidden)
        return output, hidden


def test_other_gradients_raise():
    fast = rnnjit.compile(OtherGradients(3, 6), backend=REFERENCE, cells=CELLS)
    with pytest.raises(ValueError, match="differs by"):
        fast(torch.randn(4, 4, 3))


def test_the_first_call_may_be_one_without_gradients():
    for mode in (torch.no_grad, torch.inference_mode):
        model = CTRNN(3, 6)
        fast = rnnjit.compile(model, backend=REFERENCE, cells=CELLS)
        with mode():
            x = torch.randn(5, 2, 3)
            torch.testing.assert_close(fast(x), model(x))


def test_calls_that_are_not_described_run_the_original_loop():
    model = CTRNN(3, 6).eval()
    fast = rnnjit.compile(model, backend=REFERENCE, cells=CELLS)
    x = torch.randn(5, 2, 3)
    found = torch.func.vmap(lambda x: fast(x)[0])(x[None])
    torch.testing.assert_close(found[0], model(x)[0])
    empty = torch.randn(5, 0, 3)
    assert fast(empty)[0].shape == (5, 0, 6)


@pytest.mark.parametrize(
    ("make", "kind", "said"),
    [
        (lambda: rnnjit.adapt(3), TypeError, "name of a method"),
        (lambda: rnnjit.adapt("f", arguments=("h",)), ValueError, "arguments must be 'x'"),
        (lambda: rnnjit.adapt("f", arguments=("x", "h", "h")), ValueError, "arguments"),
        (lambda: rnnjit.adapt("f", results=("z",)), ValueError, "results must be"),
        (lambda: rnnjit.adapt("f", returns=("h",)), ValueError, "returns must be"),
        (lambda: rnnjit.compile(CTRNN(1, 1), cells=[CTRNN]), TypeError, "cells must be a dict"),
        (lambda: rnnjit.compile(CTRNN(1, 1), cells={CTRNN: "f"}), TypeError, "rnnjit.adapt"),
        (lambda: rnnjit.compile(CTRNN(1, 1), cells={3: HOW}), TypeError, "subclasses"),
        (
            lambda: rnnjit.compile(CTRNN(1, 1), cells={CTRNN: rnnjit.adapt("nothing")}),
            ValueError,
            "no method 'nothing'",
        ),
        (lambda: rnnjit.compile(nn.RNN(1, 1), cells=CELLS), ValueError, "contains no CTRNN"),
    ],
)
def test_wrong_arguments(make, kind, said):
    with pytest.raises(kind, match=said):
        make()


def test_explain_lists_loops():
    model = nn.ModuleList([CTRNN(3, 6), nn.LSTM(3, 6), BatchFirst(3, 4)])
    first, _, last = rnnjit.explain(model).calls
    assert "rnnjit.adapt('recurrence', ...)" in first.note
    assert "rnnjit.adapt('step', ...)" in last.note
    fast = rnnjit.compile(model, cells={CTRNN: HOW})
    first, _, last = rnnjit.explain(fast).calls
    assert "is compiled" in first.note
    assert "left as it is" in last.note

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


class TupleOfStates(nn.Module):
    """An LSTM whose step takes and returns its states as one tuple; it has no sizes of its own."""

    def __init__(self, n_in, n):
        super().__init__()
        self.from_x, self.from_h = nn.Linear(n_in, 4 * n), nn.Linear(n, 4 * n, bias=False)

    def step(self, x, state):
        h, c = state
        i, f, g, o = (self.from_x(x) + self.from_h(h)).chunk(4, 1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        return h, (h, c)

    def forward(self, x, state=None):
        n, found = self.from_h.in_features, []
        state = state or (x.new_zeros(x.shape[1], n), x.new_zeros(x.shape[1], n))
        for row in x:
            y, state = self.step(row, state)
            found.append(y)
        return torch.stack(found), state


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
HOW_TUPLE = rnnjit.adapt(
    "step",
    arguments=("x", ("h", "c")),
    results=("y", ("h", "c")),
    input_size="from_x.in_features",
    hidden_size="from_h.in_features",
)
CELLS = {CTRNN: HOW, BatchFirst: HOW_FIRST, TupleOfStates: HOW_TUPLE}


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


def test_states_in_a_tuple_and_sizes_of_a_submodule():
    torch.manual_seed(0)
    model = TupleOfStates(3, 5).double()
    fast = rnnjit.compile(model, backend=REFERENCE, cells=CELLS)
    x = torch.randn(7, 4, 3).double()
    torch.testing.assert_close(outcome(fast, x), outcome(model, x))
    state = torch.randn(4, 5).double(), torch.randn(4, 5).double()
    torch.testing.assert_close(outcome(fast, x, state), outcome(model, x, state))


def test_errors_of_a_step_name_the_users_method():
    class Sums(CTRNN):
        def recurrence(self, input, hidden):  # noqa: A002 - as above
            return super().recurrence(input, hidden.cumsum(-1))

    how = {"input_size": "from_x.in_features", "hidden_size": "from_h.in_features"}
    for cls, options, name in (
        (Sums, HOW, "Sums.recurrence, test_adapt"),
        (TupleOfStates, rnnjit.adapt("step", arguments=("x", ("h", "c")), **how), "3 tensors"),
    ):
        fast = rnnjit.compile(cls(3, 6), backend=REFERENCE, cells={cls: options})
        with pytest.raises(rnnjit.CellError, match=name):
            fast(torch.randn(4, 2, 3))


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
        (lambda: rnnjit.adapt("f", input_size=3), TypeError, "input_size must be the name"),
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
        (
            lambda: rnnjit.compile(
                CTRNN(1, 1), cells={CTRNN: rnnjit.adapt("recurrence", input_size="n_in")}
            ),
            ValueError,
            "'n_in', which is missing",
        ),
        (
            lambda: rnnjit.compile(
                TupleOfStates(1, 1), cells={TupleOfStates: rnnjit.adapt("step", arguments="xhc")}
            ),
            ValueError,
            r"step\(self, x, state\) cannot be called with the arguments \('x', 'h', 'c'\)",
        ),
    ],
)
def test_wrong_arguments(make, kind, said):
    with pytest.raises(kind, match=said):
        make()


def test_explain_says_who_runs_a_loop():
    x, model = torch.randn(5, 2, 3), nn.Sequential()
    model.cell = CTRNN(3, 6, noise=0.1)
    fast = rnnjit.compile(model, backend=REFERENCE, cells=CELLS)
    state = torch.get_rng_state()
    (call,) = rnnjit.explain(fast, x).calls
    assert torch.equal(torch.get_rng_state(), state)
    assert (call.name, call.chosen, call.problem.T, call.problem.B) == ("cell", "reference", 5, 2)
    assert "loop over its recurrence is compiled" in call.note
    assert "draws at each step: 1" in call.note
    assert call.problem.needs_grad
    with torch.no_grad():
        assert not rnnjit.explain(fast, x).calls[0].problem.needs_grad
    with torch.autocast("cpu"):
        assert "its own loop runs" in rnnjit.explain(fast, x).calls[0].note
    eager = rnnjit.compile(model, backend="eager", cells=CELLS)
    assert "'eager' was asked for" in rnnjit.explain(eager, x).calls[0].note
    torch.testing.assert_close(fast.eval()(x), model.eval()(x))  # still compiled


def test_explain_lists_loops():
    model = nn.ModuleList([CTRNN(3, 6), nn.LSTM(3, 6), BatchFirst(3, 4)])
    first, _, last = rnnjit.explain(model).calls
    assert "rnnjit.adapt('recurrence', ...)" in first.note
    assert "rnnjit.adapt('step', ...)" in last.note
    fast = rnnjit.compile(model, cells={CTRNN: HOW})
    first, _, last = rnnjit.explain(fast).calls
    assert "is compiled" in first.note
    assert "left as it is" in last.note


class Plain(nn.Module):
    """A loop without parameters, whose step draws from a generator of its own."""

    input_size = hidden_size = 4

    def __init__(self):
        super().__init__()
        self.decay, self.generator = [0.5], torch.Generator().manual_seed(0)

    def step(self, x, h):
        noise = torch.randn(h.shape, generator=self.generator, dtype=h.dtype)
        return torch.tanh(x + self.decay[0] * h) + 0.1 * noise

    def forward(self, x, h=None):
        h = x.new_zeros(x.shape[1], self.hidden_size) if h is None else h
        found = []
        for row in x:
            h = self.step(row, h)
            found.append(h)
        return torch.stack(found), h


def test_neither_parameters_nor_torchs_generator_are_needed():
    loop, own = Plain(), {Plain: rnnjit.adapt("step")}
    fast = rnnjit.compile(loop, cells=own, backend=REFERENCE)
    x = torch.randn(5, 2, 4, dtype=torch.float64)
    for decay in (0.5, 2.0):
        loop.decay[0] = fast.decay[0] = decay
        before = torch.get_rng_state()
        torch.testing.assert_close(fast(x), loop(x))
        assert torch.equal(torch.get_rng_state(), before)


def test_the_check_seeds_no_generator(monkeypatch):
    """A seed would reach every device's, and only those of the call are restored."""
    monkeypatch.setattr(torch, "manual_seed", None)
    loop = CTRNN(3, 4, noise=0.1)
    fast = rnnjit.compile(loop, cells={CTRNN: rnnjit.adapt("recurrence")}, backend=REFERENCE)
    x, state = torch.randn(5, 2, 3), torch.get_rng_state()
    expected = loop(x)
    torch.set_rng_state(state)
    torch.testing.assert_close(fast(x), expected)


def test_states_that_only_broadcast_are_left_to_the_loop():
    loop = CTRNN(3, 4)
    fast = rnnjit.compile(loop, cells={CTRNN: rnnjit.adapt("recurrence")}, backend=REFERENCE)
    x, h = torch.randn(5, 2, 3), torch.randn(1, 4)
    torch.testing.assert_close(fast(x, h), loop(x, h))


def test_errors_name_the_users_method():
    class Mixing(CTRNN):
        def recurrence(self, input, hidden):  # noqa: A002 - as above
            self.seen = input
            return torch.tanh(self.h2h(hidden))

    own = {Mixing: rnnjit.adapt("recurrence")}
    fast = rnnjit.compile(Mixing(3, 4), cells=own, backend=REFERENCE)
    with pytest.raises(rnnjit.CellError, match=r"Mixing.recurrence, test_adapt.py:\d+: self.seen"):
        fast(torch.randn(5, 2, 3))

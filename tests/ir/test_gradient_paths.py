"""Protects which results of a cell require a gradient: those that do in the user's own loop."""

import itertools

import pytest
import torch
from torch import nn
from user_cells import CELLS, Kept

import rnnjit
from rnnjit.cells import Cell, trace_cell
from rnnjit.ir import GRU, LSTM, RNN_RELU, RNN_TANH
from rnnjit.ir.gradient_paths import gradient_paths, reach_everything

I, H = 3, 4


class Partly(Cell):
    """Its output reaches all, the state n nothing, the state t the parameter a and itself."""

    def __init__(self, input_size=I, hidden_size=H):
        super().__init__(input_size, hidden_size, states=("h", "n", "t"))
        self.a = nn.Parameter(torch.rand(hidden_size))
        self.rate = nn.Linear(input_size, hidden_size)

    def forward(self, x, h, n, t):
        h = torch.tanh(self.ih(x) + self.hh(h)) + n * t * torch.sigmoid(self.rate(x))
        return h, 0.9 * n.detach() + (h > 0).to(h.dtype), self.a * t


class Averaging(Cell):
    """Its second state reads the first, which does not read it; it is a stack all the same."""

    def __init__(self, input_size=I, hidden_size=H):
        super().__init__(input_size, hidden_size, states=("h", "n"))

    def forward(self, x, h, n):
        h = torch.tanh(self.ih(x) + self.hh(h))
        return h, 0.9 * n + 0.1 * h


class Stopped(Partly):
    """Nothing requires a gradient."""

    def forward(self, x, h, n, t):
        return torch.tanh(self.ih(x) + self.hh(h)).detach(), torch.ones_like(n), n.detach()


LEARNT = ("x", "h", "n", "t", "weight_ih_l0", "bias_hh_l0", "a_l0", "rate_weight_l0")


@pytest.mark.parametrize("cell", [Partly, Stopped])
@pytest.mark.parametrize("resets", [False, True])
def test_results_require_gradients_as_in_the_loop(cell, resets):
    torch.manual_seed(0)
    module = rnnjit.Recurrent(cell()).double()
    fast = rnnjit.compile(module, backend=Kept())
    mask = torch.tensor([[False, True], [True, False], [False, False]]) if resets else None
    for learnt in (*itertools.combinations(LEARNT, 1), ("x", "a_l0"), (), LEARNT):
        for name, parameter in fast.named_parameters():
            parameter.requires_grad_(name in learnt)
        given = {name: torch.rand(1, 2, H).double() for name in "hnt"}
        given["x"] = torch.rand(3, 2, I).double()
        for name, value in given.items():
            value.requires_grad_(name in learnt)
        hx = tuple(given[name] for name in "hnt")
        found, expected = (
            each(given["x"], hx, mask, return_states=True) for each in (fast, module)
        )
        flags = [
            [each.requires_grad for each in (y, *h_n, *states)]
            for y, h_n, (states,) in (found, expected)
        ]
        assert flags[0] == flags[1], learnt
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("learnt", [("n",), ("weight_ih_l1",), ("weight_ih_l0",), ("x", "n"), ()])
def test_a_stack_is_one_where_all_results_require_a_gradient(learnt):
    torch.manual_seed(0)
    module = rnnjit.Recurrent(Averaging(H), num_layers=2).double()
    fast = rnnjit.compile(module, backend=Kept())
    for name, parameter in fast.named_parameters():
        parameter.requires_grad_(name in learnt)
    x, h, n = torch.rand(3, 2, H).double(), torch.rand(2, 2, H).double(), torch.rand(2, 2, H)
    hx = h, n.double().requires_grad_("n" in learnt)
    x.requires_grad_("x" in learnt)
    for _ in range(2):
        (y, states), (expected, others) = fast(x, hx), module(x, hx)
        flags = [
            [each.requires_grad for each in (a, *b)] for a, b in ((y, states), (expected, others))
        ]
        assert flags[0] == flags[1]
        torch.testing.assert_close((y, states), (expected, others))
    whole = learnt != ("n",)
    assert (rnnjit.explain(fast, x, hx).calls[0].name == "") is whole


def test_gradients_are_those_of_the_loop_where_some_are_stopped():
    torch.manual_seed(0)
    module = rnnjit.Recurrent(Partly(), num_layers=2, bidirectional=True).double()
    fast = rnnjit.compile(module, backend=Kept())
    x, grads = torch.rand(3, 2, I).double(), []
    for each in (fast, module):
        y, (h, _, t) = each(x)
        total = (y * y).sum() + h.sum() + (t * torch.arange(H)).sum()
        grads.append(torch.autograd.grad(total, list(each.parameters()), allow_unused=True))
    found, expected = ([torch.zeros(()) if g is None else g for g in each] for each in grads)
    for own, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(own, theirs.expand_as(own))


def test_most_cells_reach_everything():
    """They form stacks, which the fast path runs."""
    assert all(map(reach_everything, (RNN_TANH, RNN_RELU, LSTM, GRU)))
    for name in set(CELLS) - {"Normed"}:
        assert reach_everything(trace_cell(CELLS[name](I, H)).spec), name
    for name in ("IndRNN", "MGU", "JANET", "LIF", "UGRNN", "LeakyRNN", "PeepholeLSTM"):
        assert reach_everything(trace_cell(getattr(rnnjit.cells, name)(I, H)).spec), name
    output, h, n, t = gradient_paths(trace_cell(Partly()).spec)
    assert output == h
    assert (n.zx, n.zh, n.states, n.parameters) == (False, False, frozenset(), frozenset())
    assert (t.states, t.parameters) == (frozenset({2}), frozenset({0}))

"""Protects traces of cells whose parameters are replaced, tied or taken apart, or are results."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from traced_loops import assert_equals_loop
from user_cells import Kept, outcome

import rnnjit
from rnnjit.cells import Cell, trace_cell

H = 4


class Tied(Cell):
    """Both weights are one, and the rank of another one is a number of the step."""

    def __init__(self, input_size, hidden_size, rank=2):
        super().__init__(input_size, hidden_size)
        self.weight_hh = self.weight_ih
        self.m = nn.Parameter(torch.rand(hidden_size, rank))

    def forward(self, x, h):
        low = F.linear(h, self.m @ self.m.T / self.m.shape[1])
        return torch.tanh(self.ih(x) + self.hh(h) + low)


class Untied(Tied):
    """The same without another parameter, so that its weights are all that a fast path reads."""

    def __init__(self, input_size, hidden_size):
        super().__init__(input_size, hidden_size)
        del self.m

    def forward(self, x, h):
        return torch.tanh(self.ih(x) + self.hh(h))


@pytest.mark.parametrize("cell", [Tied, Untied])
def test_tensors_of_another_shape_and_tied_tensors_that_come_apart(cell):
    torch.manual_seed(0)
    module = rnnjit.Recurrent(cell(H, H)).double()
    fast = rnnjit.compile(module, backend=Kept())
    x = torch.randn(3, 2, H).double()
    changes = [{}, {"weight_hh_l0": torch.randn(H, H)}]
    if cell is Tied:
        changes += [{"m_l0": torch.randn(H, rank)} for rank in (5, 1)]
    for change in changes:
        for name, value in change.items():
            for each in (module, fast):
                setattr(each, name, nn.Parameter(value.double()))
        for _ in range(2):
            torch.testing.assert_close(outcome(fast, x), outcome(module, x))
            with torch.no_grad():
                torch.testing.assert_close(fast(x), module(x))


def test_a_cell_alone_is_traced_anew():
    cell = Tied(H, H).double()
    tied = trace_cell(cell)
    assert trace_cell(cell) is tied
    cell.weight_hh = nn.Parameter(torch.rand(H, H).double())
    apart = trace_cell(cell)
    assert apart is not tied
    cell.m = nn.Parameter(torch.rand(H, 3).double())
    assert trace_cell(cell) is not apart
    assert_equals_loop(cell)


class OfTorch(Cell):
    """A cell of torch inside, and a parameter and a number as results."""

    def __init__(self):
        super().__init__(3, H, states=("h", "c"))
        self.inner, self.a = nn.GRUCell(3, H), nn.Parameter(torch.rand(H))

    def forward(self, x, h, c):
        return self.a.expand_as(h), (self.inner(x, h), torch.ones_like(c))


def test_torchs_own_cells_and_results_that_are_parameters():
    cell = OfTorch().double()
    assert_equals_loop(cell)
    module = rnnjit.Recurrent(cell)
    fast = rnnjit.compile(module, backend=Kept())
    x = torch.randn(3, 2, 3).double()
    y, (h, c) = fast(x)
    torch.testing.assert_close((y, (h, c)), module(x))
    assert (y.shape, h.shape, c.shape) == ((3, 2, H), (1, 2, H), (1, 2, H))


def test_on_meta_the_cells_own_loop_runs():
    fast = rnnjit.compile(rnnjit.Recurrent(Tied(H, H)).to("meta"))
    x = torch.randn(3, 2, H, device="meta")
    assert fast(x)[0].shape == (3, 2, H)
    assert "on meta" in str(rnnjit.explain(fast, x))

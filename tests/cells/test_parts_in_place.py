"""Protects parts of a tensor that are changed in place, as torch's own cells change their gates."""

import pytest
import torch
from torch import nn
from traced_loops import assert_equals_loop

from rnnjit.cells import Cell, trace_cell
from rnnjit.errors import CellError
from rnnjit.ir import LSTM, RNN_TANH

I, H = 3, 4


class Wrapped(nn.Module):
    """A cell of torch inside of a cell; torch's operators of it change gates in place."""

    def __init__(self, kind, states):
        super().__init__()
        self.input_size, self.hidden_size, self.states = I, H, states
        self.inner = kind(I, H, dtype=torch.float64)

    def forward(self, x, *states):
        return self.inner(x, states if len(states) > 1 else states[0])


@pytest.mark.parametrize(
    ("kind", "states", "cell"),
    [
        (nn.RNNCell, ("h",), RNN_TANH),
        (nn.LSTMCell, ("h", "c"), LSTM),
        (nn.GRUCell, ("h",), None),  # torch adds the parts of its gates in another order
    ],
)
def test_cells_of_torch_inside_of_a_cell_are_the_built_in_ones(kind, states, cell):
    torch.manual_seed(0)
    mine = Wrapped(kind, states)
    assert cell is None or trace_cell(mine).spec.digest == cell.digest
    assert_equals_loop(mine)


class Parts(Cell):
    """Splits its gates, and changes parts of them in place."""

    def __init__(self):
        super().__init__(I, H, gates=2, dtype=torch.float64)

    def forward(self, x, h):
        z = self.ih(x) + self.hh(h)
        return self.rest(z, *z.unsafe_chunk(2, -1))


def test_parts_lie_apart():
    torch.manual_seed(0)
    cell = Parts()
    cell.rest = lambda z, a, b: a.sigmoid_() * b.tanh_()
    assert_equals_loop(cell)


@pytest.mark.parametrize(
    "rest",
    [
        lambda z, a, b: a.tanh_() + z[:, :H],  # the whole
        lambda z, a, b: (z.view(-1, 2, H).select(1, 0), a.tanh_())[0],
        lambda z, a, b: (a.view(-1, H), a.tanh_())[0] + b,  # a part of a part
    ],
)
def test_what_has_memory_in_common_with_a_changed_part_is_refused(rest):
    cell = Parts()
    cell.rest = rest
    with pytest.raises(CellError, match="changed in place through another one"):
        trace_cell(cell)

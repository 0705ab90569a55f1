"""Protects gradient flow of users' cells, against torch's layers, autograd and closed forms."""

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

import rnnjit

T, B, I, H = 6, 3, 3, 4
CLOSE = {"rtol": 1e-9, "atol": 1e-12}


class LSTM(rnnjit.Cell):
    def __init__(self, input_size, hidden_size):
        super().__init__(input_size, hidden_size, 4, ("h", "c"), dtype=torch.float64)

    def forward(self, x, h, c):
        i, f, g, o = (self.ih(x) + self.hh(h)).chunk(4, -1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        return o.sigmoid() * c.tanh(), c


class Rate(rnnjit.Cell):
    """Its output is no state, and its state is used by the output and by the next step."""

    def __init__(self):
        super().__init__(I, H, states=("v",), dtype=torch.float64)

    def forward(self, x, v):
        v = 0.8 * v + 0.2 * (self.ih(x) + self.hh(torch.tanh(v)))
        return v.sigmoid(), v


class Delayed(rnnjit.Cell):
    """A linear step with a state that is another one of the step before."""

    def __init__(self):
        super().__init__(1, 1, states=("h", "late"), recurrent=False, dtype=torch.float64)

    def forward(self, x, h, late):
        return x + 0.5 * h + 0.25 * late, h


@pytest.mark.parametrize("packed", [False, True])
def test_the_lstm_written_again_has_the_flow_of_torchs(packed):
    torch.manual_seed(0)
    theirs = nn.LSTM(I, H, num_layers=2, bidirectional=True, dtype=torch.float64)
    mine = rnnjit.Recurrent(LSTM(I, H), num_layers=2, bidirectional=True)
    mine.load_state_dict(theirs.state_dict())
    x = torch.randn(T, B, I, dtype=torch.float64)
    given = pack_padded_sequence(x, torch.tensor([6, 4, 1])) if packed else x

    def loss(found):
        y, (h, c) = found
        return (y.data if packed else y).cos().sum() + h.exp().sum() + 2 * c.sin().sum()

    expected = rnnjit.gradient_flow(theirs, given, loss=loss).states[""]
    for module in (mine, rnnjit.compile(mine)):
        found = rnnjit.gradient_flow(module, given, loss=loss).states[""]
        assert list(found) == ["h", "c"]
        torch.testing.assert_close(found, expected, **CLOSE)


def test_an_output_that_is_no_state():
    torch.manual_seed(0)
    model = nn.Sequential()
    model.rate = rnnjit.Recurrent(Rate())
    x = torch.randn(T, B, I, dtype=torch.float64)
    found = rnnjit.gradient_flow(model, x, loss=lambda out: out[0].exp().sum())
    cell, v, kept, total = model.rate._store.bind(model.rate)[0], torch.zeros(B, H).double(), [], 0
    for row in x:
        y, v = cell(row, v)
        v.retain_grad()
        kept.append(v)
        total = total + y.exp().sum()
    total.backward()
    expected = torch.stack([v.grad.norm() for v in kept]).view(1, 1, T)
    torch.testing.assert_close(found.norms["rate"], expected, **CLOSE)
    assert str(found).startswith("rate, layer 0: ")


@pytest.mark.parametrize("frozen", [False, True])
def test_a_state_that_is_another_of_the_step_before(frozen):
    # h_t = x_t + h_{t-1} / 2 + late_{t-1} / 4 and late_t = h_{t-1}; L is the last h.
    module = rnnjit.Recurrent(Delayed()).requires_grad_(not frozen)
    of_h, of_late = [1.0], [0.0]
    for _ in range(T - 1):
        of_late.insert(0, 0.25 * of_h[0])
        of_h.insert(0, 0.5 * of_h[0] + of_late[1])
    flow = rnnjit.gradient_flow(
        module, torch.ones(T, 1).double(), loss=lambda out: out[0][-1].sum()
    )
    expected = {"h": torch.tensor([[of_h]]).double(), "late": torch.tensor([[of_late]]).double()}
    torch.testing.assert_close(flow.states[""], expected, **CLOSE)


def test_resets_cut_the_flow():
    module, reset = rnnjit.Recurrent(Rate()), torch.zeros(T, B, dtype=torch.bool)
    reset[4] = True

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.rate = rnnjit.compile(module)

        def forward(self, x):
            return self.rate(x, reset=reset, return_states=True)[0][-1]

    norms = rnnjit.gradient_flow(Model(), torch.randn(T, B, I).double()).norms["rate"][0, 0]
    assert not norms[:4].any()
    assert norms[4:].all()

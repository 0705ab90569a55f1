"""Protects a compiled nn.RNNCell: one step of a layer, in every way that eager's cell is used."""

import copy
import pickle

import pytest
import torch
from torch import nn

import rnnjit

B, I, H = 3, 4, 6
CLOSE = {"rtol": 1e-10, "atol": 1e-12}
BACKENDS = [name for name, backend in rnnjit.backends().items() if not backend.missing()]


def make(**options):
    torch.manual_seed(0)
    return nn.RNNCell(I, H, dtype=torch.float64, **options)


def draw(*shape, grad=True):
    return torch.randn(shape, dtype=torch.float64, requires_grad=grad)


@pytest.mark.parametrize("given", [False, True], ids=["zeros", "hx"])
@pytest.mark.parametrize("batch", [(B,), (1,), (0,), ()], ids=["batch", "one", "none", "unbatched"])
@pytest.mark.parametrize("options", [{}, {"nonlinearity": "relu"}, {"bias": False}], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_values_and_gradients(backend, options, batch, given):
    cell = make(**options)
    fast = rnnjit.compile(cell, backend=backend)
    x, hx = draw(*batch, I), draw(*batch, H) if given else None
    leaves = [leaf for leaf in (x, hx, *cell.parameters()) if leaf is not None]
    for _ in range(2):  # the second call takes the short way
        found, expected = fast(x, hx), cell(x, hx)
        torch.testing.assert_close(found, expected, **CLOSE)
        weight = torch.randn_like(expected)
        grads = [torch.autograd.grad(h, leaves, weight) for h in (found, expected)]
        torch.testing.assert_close(*grads, **CLOSE)


def test_a_loop_over_steps():
    cell = make()
    fast, x = rnnjit.compile(cell), draw(9, B, I)
    states = []
    for module in (fast, cell):
        h = None
        for frame in x:
            h = module(frame, h)
        states.append((h, *torch.autograd.grad(h.square().sum(), [x, *cell.parameters()])))
    torch.testing.assert_close(*states, **CLOSE)


def test_it_shares_parameters_and_looks_like_the_cell():
    cell = make(bias=False, nonlinearity="relu")
    fast = rnnjit.compile(cell)
    assert repr(fast) == repr(cell)
    assert fast.weight_hh is cell.weight_hh
    assert list(fast.state_dict()) == list(cell.state_dict())
    assert isinstance(fast, nn.RNNCellBase)
    for again in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
        x = draw(B, I)
        torch.testing.assert_close(again(x), cell(x), **CLOSE)
        assert again.weight_hh is not cell.weight_hh


class Decoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn, self.cell = nn.RNN(I, H, dtype=torch.float64), make()

    def forward(self, x):
        y, _ = self.rnn(x)
        h = y[-1]
        for frame in x:
            h = self.cell(frame, h)
        return h


def test_cells_in_a_model_beside_rnns():
    model, x = Decoder(), draw(5, B, I)
    fast = rnnjit.compile(model)
    assert type(fast.cell) is rnnjit.CompiledRNNCell
    assert type(model.cell) is nn.RNNCell
    torch.testing.assert_close(fast(x), model(x), **CLOSE)
    explained = rnnjit.explain(fast, x)
    assert [(call.name, call.chosen) for call in explained.calls] == [
        ("rnn", "numba"),
        ("cell", "numba"),
    ]
    traced = torch.compile(fast, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(traced(x), model(x), **CLOSE)


def test_other_cells_stay_eager():
    model = nn.ModuleList([nn.RNNCell(I, H), nn.LSTMCell(I, H), nn.GRUCell(I, H)])
    fast = rnnjit.compile(model)
    assert [type(each) for each in fast] == [rnnjit.CompiledRNNCell, nn.LSTMCell, nn.GRUCell]
    said = "left eager: it is no nn.RNN, nn.LSTM, nn.GRU or nn.RNNCell"
    assert [call.note for call in rnnjit.explain(fast).calls[1:]] == [said, said]


def test_settings_and_weights_are_read_at_every_call():
    cell = make()
    fast, x = rnnjit.compile(cell), draw(B, I)
    fast(x)
    with torch.no_grad():
        cell.weight_ih.mul_(2)
    torch.testing.assert_close(fast(x), cell(x), **CLOSE)
    fast.nonlinearity = cell.nonlinearity = "relu"
    torch.testing.assert_close(fast(x), cell(x), **CLOSE)


def test_transforms_double_backward_and_autocast():
    cell = make()
    fast, x = rnnjit.compile(cell), draw(B, I)
    assert torch.autograd.gradgradcheck(fast, (x,))
    jacobians = [torch.func.jacrev(module)(x) for module in (fast, cell)]
    torch.testing.assert_close(*jacobians, **CLOSE)
    single, fast_single = cell.float(), rnnjit.compile(cell.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, expected = fast_single(x.float()), single(x.float())
    assert found.dtype == expected.dtype
    assert torch.equal(found, expected)


def test_tuning():
    call, *others = rnnjit.tune(rnnjit.compile(make()), draw(B, I), draw(B, H), rounds=1).calls
    assert not others
    assert {"numba", "eager"} <= call.seconds.keys()
    assert call.failures == {}


BAD = {
    "rank": lambda: (draw(1, B, I),),
    "features": lambda: (draw(B, I + 1),),
    "dtype": lambda: (draw(B, I).float(),),
    "hx rank": lambda: (draw(B, I), draw(1, 1, H)),
    "hx batch": lambda: (draw(B, I), draw(B + 1, H)),
    "hx features": lambda: (draw(B, I), draw(B, H + 1)),
    "hx dtype": lambda: (draw(B, I), draw(B, H).float()),
    "hx unbatched": lambda: (draw(B, I), draw(H)),
    "kind": lambda: ([1.0],),
}


@pytest.mark.parametrize("what", BAD)
def test_what_eager_rejects_is_rejected_alike(what):
    cell = make()
    fast = rnnjit.compile(cell)
    with pytest.raises(Exception) as eager:  # noqa: PT011 - which one is the question
        cell(*BAD[what]())
    with pytest.raises(type(eager.value)):
        fast(*BAD[what]())
    x = draw(B, I)
    torch.testing.assert_close(fast(x), cell(x), **CLOSE)

"""Protects quantized modules of the user's cells, against nn.LSTM's and float64 of the cells."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

import rnnjit
from rnnjit.quantization import product, quantize_matrix

I, H = 6, 9


class Written(rnnjit.Cell):
    """nn.LSTM's cell, with its names."""

    def __init__(self, input_size, hidden_size):
        super().__init__(input_size, hidden_size, gates=4, states=("h", "c"))

    def forward(self, x, h, c):
        i, f, g, o = (self.ih(x) + self.hh(h)).chunk(4, -1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(c)
        return h, h, c


class Leaky(rnnjit.Cell):
    """An operand and an output that are not the state, with a parameter of the cell's own."""

    def __init__(self, input_size, hidden_size):
        super().__init__(input_size, hidden_size)
        self.decay = nn.Parameter(torch.rand(hidden_size))

    def forward(self, x, v):
        v = self.decay * v + self.ih(x) + self.hh(torch.relu(v + self.decay))
        return torch.tanh(v), v


class Noisy(rnnjit.Cell):
    def forward(self, x, h):
        h = torch.tanh(self.ih(x) + self.hh(h)) + 0.1 * torch.randn_like(h)
        return h, h


def test_a_written_lstm_is_nn_lstm():
    torch.manual_seed(0)
    lstm = nn.LSTM(I, H, 2, bidirectional=True)
    own = rnnjit.Recurrent(Written(I, H), 2, bidirectional=True)
    own.load_state_dict(lstm.state_dict())
    x = torch.randn(5, 3, I, requires_grad=True)
    expected, found = (rnnjit.quantize(m, backend="eager") for m in (lstm, own))
    for call in (lambda m: m(x), lambda m: m(pack_padded_sequence(x, [5, 3, 2]))):
        (y, hx), (theirs, their_hx) = call(found), call(expected)
        y, theirs = (each if torch.is_tensor(each) else each.data for each in (y, theirs))
        assert torch.allclose(y, theirs, atol=1e-6)
        assert not y.requires_grad
        assert all(map(torch.allclose, hx, their_hx))
    for name, tensor in expected.state_dict().items():
        assert torch.equal(found.state_dict()[name], tensor)


def test_own_parameters_states_and_operands():
    """Against the steps by `product`; also of copies, and what tools say."""
    torch.manual_seed(0)
    own = rnnjit.Recurrent(Leaky(I, H))
    quantized = rnnjit.quantize(own, backend="eager")
    x = torch.randn(4, 3, I)
    w = {n.removesuffix("_l0"): p.detach() for n, p in own.named_parameters()}
    ih, hh = quantize_matrix(w["weight_ih"]), quantize_matrix(w["weight_hh"])
    v, ys = torch.zeros(3, H), []
    for frame in x:
        operand = torch.relu(v + w["decay"])
        zx = product(frame, ih.values, ih.scale, w["bias_ih"])
        v = w["decay"] * v + zx + product(operand, hh.values, hh.scale, w["bias_hh"])
        ys.append(torch.tanh(v))
    for module in (quantized, copy.deepcopy(quantized), pickle.loads(pickle.dumps(quantized))):
        y, h_n = module(x)
        assert torch.allclose(y, torch.stack(ys), atol=1e-5)
        assert torch.allclose(h_n[0], v, atol=1e-5)
    again = rnnjit.compile(quantized, backend="eager")
    assert torch.equal(again(x)[0], quantized(x)[0])
    assert rnnjit.explain(quantized, x).calls[0].chosen == "eager"
    assert quantized.weight_ih_l0.dtype is torch.int8
    assert not list(quantized.parameters())
    assert own.weight_ih_l0.requires_grad
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.allclose(quantized(x.bfloat16())[0], y, atol=0.05)
    with pytest.raises(ValueError, match=r"input must be torch\.float32"):
        quantized(x.double())
    mask = torch.zeros(4, 3, dtype=torch.bool)
    mask[2] = True
    assert torch.allclose(quantized(x, reset=mask)[0][2:], quantized(x[2:])[0], atol=1e-6)


def test_what_draws_is_left_with_the_reason():
    with pytest.raises(ValueError, match="draws random numbers"):
        rnnjit.quantize(rnnjit.Recurrent(Noisy(I, H)))

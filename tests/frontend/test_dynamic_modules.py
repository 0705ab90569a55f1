"""Protects compile on torch's dynamically quantized modules, against float64 of their matrices."""

import copy

import pytest
import torch
from torch import nn
from torch.ao.nn.quantized import dynamic
from torch.ao.quantization import (
    default_dynamic_qconfig,
    float16_dynamic_qconfig,
    per_channel_dynamic_qconfig,
    quantize_dynamic,
)

import rnnjit

MODULES = {
    "lstm": lambda: nn.LSTM(20, 30, 2, bidirectional=True, dropout=0.1),
    "gru": lambda: nn.GRU(20, 30, 2, batch_first=True),
    "lstm cell": lambda: nn.LSTMCell(20, 30),
    "gru cell": lambda: nn.GRUCell(20, 30),
    "rnn cell": lambda: nn.RNNCell(20, 30, nonlinearity="relu"),
}
QCONFIGS = {"tensor": default_dynamic_qconfig, "channel": per_channel_dynamic_qconfig}
# Torch says that it will drop such tensors.
pytestmark = pytest.mark.filterwarnings("ignore:.*deprecated")


def first(result):
    return result[0] if isinstance(result, tuple) else result


def dequantized(module, own):
    """The float64 module with the values of the int8 matrices."""
    other = copy.deepcopy(module).double()
    with torch.no_grad():
        for name, weight in own.get_weight().items():
            getattr(other, name).copy_(weight.dequantize())
    return other


@pytest.mark.parametrize("scales", QCONFIGS)
@pytest.mark.parametrize("kind", MODULES)
def test_its_own_int8_matrices_run_as_exactly_as_in_torch(kind, scales):
    torch.manual_seed(0)
    module = MODULES[kind]().eval()
    model = quantize_dynamic(nn.Sequential(module), {type(module): QCONFIGS[scales]}).eval()
    theirs, ours = model[0], rnnjit.compile(model, backend="eager")[0]
    assert type(model[0]) is type(theirs), "the original stays"
    for name, weight in theirs.get_weight().items():
        assert torch.equal(getattr(ours, name), weight.int_repr())
    x = torch.randn(16, 8, 20) if isinstance(module, nn.RNNBase) else torch.randn(128, 20)
    exact = first(dequantized(module, theirs)(x.double())).detach()
    errors = [(first(each(x)) - exact).square().mean().sqrt() for each in (ours, theirs)]
    assert errors[0] < 1.1 * errors[1]
    assert isinstance(ours, type(module))
    assert not ours.training


def test_in_place_with_hooks_and_in_its_mode():
    model = nn.Sequential(nn.GRU(4, 5, bias=True))
    model = quantize_dynamic(model, {nn.GRU})
    calls = []
    model[0].register_forward_hook(lambda *_: calls.append(1))
    rnn = model[0]
    with pytest.raises(TypeError, match="got torch's dynamically quantized GRU: compile it first"):
        rnnjit.Stream(rnn)
    assert rnnjit.compile(model, backend="eager", inplace=True)[0] is rnn
    rnn(torch.zeros(2, 3, 4))
    assert calls
    assert isinstance(rnn, nn.GRU)
    assert rnn.weight_ih_l0.dtype is torch.int8


def test_zero_points_and_float16_are_left_with_a_reason():
    model = nn.ModuleList([nn.GRU(4, 5), nn.GRU(4, 5), nn.GRU(4, 5)])
    half = quantize_dynamic(model[:1], {nn.GRU: float16_dynamic_qconfig})
    odd = dynamic.GRU(4, 5)
    given = odd.get_weight() | odd.get_bias()
    given["weight_hh_l0"] = torch.quantize_per_tensor(torch.randn(15, 5), 0.1, 3, torch.qint8)
    odd.set_weight_bias(given)
    both = nn.ModuleList([half[0], odd, nn.GRU(4, 5)])
    with pytest.warns(rnnjit.RNNJitWarning, match="zero points of its weight_hh_l0 are not 0"):
        compiled = rnnjit.compile(both, backend="eager")
    assert type(compiled[1]) is dynamic.GRU
    assert type(compiled[0]) is dynamic.GRU
    with pytest.warns(rnnjit.RNNJitWarning, match="takes? qint8|take qint8"):
        rnnjit.compile(both, backend="eager")

"""Protects calls with tensors whose memory was freed: an error that says so, and no crash."""

import pytest
import torch
from torch import nn

import rnnjit
from rnnjit.errors import FreedInputError

LAYERS = {"rnn": nn.RNN, "lstm": nn.LSTM}


def freed(tensor):
    tensor.untyped_storage().resize_(0)


@pytest.fixture(params=["numba", "tvm"])
def backend(request):
    if request.param not in rnnjit.backends():
        pytest.skip(f"{request.param} is not installed")
    return request.param


@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize(
    ("name", "which"),
    [
        *(("rnn", which) for which in ("x", "weight_ih_l0", "weight_hh_l0", "bias_hh_l0", "h0")),
        *(("lstm", which) for which in ("x", "weight_hh_l0", "h0", "c0")),
    ],
)
def test_a_call(name, which, recorded, backend):
    fast, x = rnnjit.compile(LAYERS[name](3, 5), backend=backend), torch.randn(4, 2, 3)
    states = {state: torch.randn(1, 2, 5) for state in ("h0", "c0")[: 1 + (name == "lstm")]}
    hx = tuple(states.values()) if name == "lstm" else states["h0"]
    with torch.set_grad_enabled(recorded):
        fast(x, hx)  # the next one takes the fast path
        freed({**states, "x": x}.get(which, getattr(fast, which, None)))
        with pytest.raises(RuntimeError, match="no memory: its storage was resized to 0 bytes"):
            fast(x, hx)


@pytest.mark.parametrize("which", ["x", "weight_hh_l0"])
def test_a_backward_pass(which, backend):
    fast, x = rnnjit.compile(nn.RNN(3, 5), backend=backend), torch.randn(4, 2, 3)
    y, _ = fast(x)
    freed(x if which == "x" else fast.weight_hh_l0)
    with pytest.raises(
        RuntimeError, match=f"{'x' if which == 'x' else 'weight 1'}.* has no memory"
    ):
        y.sum().backward()


def test_a_stream():
    module = nn.GRU(3, 5)
    stream = rnnjit.Stream(rnnjit.compile(module, backend="numba"), 1)
    stream.step(torch.randn(1, 3))
    freed(module.weight_hh_l0)
    with pytest.raises(FreedInputError, match="a weight of the stream has no memory"):
        stream.step(torch.randn(1, 3))


def test_auto_does_not_try_another_backend():
    fast, x = rnnjit.compile(nn.LSTM(3, 5)), torch.randn(4, 2, 3)
    fast(x)
    freed(x)
    with pytest.raises(FreedInputError, match=r"x, of shape \[4, 2, 3\], has no memory"):
        fast(x)


@pytest.mark.parametrize("name", ["weight_hr_l0", "weight_ih_l0_scale", "weight_hh_l0_sum"])
def test_weights_of_few_layers(name):
    module, x = nn.LSTM(3, 5, proj_size=2), torch.randn(4, 2, 3)
    make = rnnjit.compile if name == "weight_hr_l0" else rnnjit.quantize
    fast = make(module, backend="numba")
    with torch.no_grad():
        fast(x)
        freed(getattr(fast, name))
        with pytest.raises(FreedInputError, match="a weight of the layer has no memory"):
            fast(x)

"""Protects packed input and resets in graphs under autocast: eager's dtypes, values, gradients."""

import onednn
import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence

import rnnjit

# Dynamo warns of torch's own deprecations when it is first imported.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.:DeprecationWarning")
I, H = 8, 6
#: What bfloat16 may be off by, relative to the largest number of a tensor.
CLOSE = 0.03


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()


def results(call, layer, *args, dtype=torch.bfloat16):
    """The results of a call under autocast, and the gradients by the weights."""
    with torch.autocast("cpu", dtype):
        y, last = call(*args)
    found = [y, *(last if isinstance(last, tuple) else (last,))]
    loss = sum(each.double().square().sum() for each in found)
    return [*found, *torch.autograd.grad(loss, list(layer.parameters()))]


def agree(found, want):
    for got, own in zip(found, want, strict=True):
        assert got.dtype is own.dtype
        largest = own.detach().abs().max().item()
        torch.testing.assert_close(got, own, rtol=0.0, atol=CLOSE * largest)


def traced(call):
    return torch.compile(call, backend="aot_eager", fullgraph=True)


def start(kind):
    torch.manual_seed(1)
    made = torch.randn(1, 3, H), torch.randn(1, 3, H)
    return made if kind is nn.LSTM else made[0]


@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU])
def test_packed_input(kind):
    torch.manual_seed(0)
    layer, hx = kind(I, H), start(kind)
    fast = rnnjit.compile(layer, backend="numba")
    x = pack_sequence([torch.randn(n, I) for n in (3, 5, 2)], enforce_sorted=False)

    def call(module):
        def run(data, hx):
            y, last = module(x._replace(data=data), hx)
            return y.data, last

        return run

    for given in (None, hx):
        want = results(call(layer), layer, x.data, given)
        agree(results(traced(call(fast)), fast, x.data, given), want)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_resets(kind):
    torch.manual_seed(0)
    layer, hx, x = kind(I, H), start(kind), torch.randn(6, 3, I)
    fast, mask = rnnjit.compile(layer, backend="numba"), torch.zeros(6, 3, dtype=torch.bool)
    mask[3] = True

    def halves(x, hx):
        first, last = layer(x[:3], hx)
        second, last = layer(x[3:])
        return torch.cat([first, second]), last

    with onednn.switched(enabled=False):  # whose dtypes are of its own
        want = results(halves, layer, x, hx)
        agree(results(traced(lambda x, hx: fast(x, hx, reset=mask)), fast, x, hx), want)


def test_a_backend_that_does_not_take_such_calls_breaks_the_graph():
    fast = rnnjit.compile(nn.GRU(I, H), backend="eager")
    x = pack_sequence([torch.randn(4, I), torch.randn(2, I)])
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        with pytest.raises(torch._dynamo.exc.Unsupported, match="under autocast"):
            traced(lambda x: fast(x)[1])(x)
        torch.testing.assert_close(torch.compile(fast, backend="eager")(x)[1], fast(x)[1])

"""Protects the TVM backend's numbers: long sums, and what must not change a bit."""

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence

import rnnjit
from rnnjit.codegen.plan import plan
from rnnjit.ir import RNN_TANH

DTYPES = (torch.float32, torch.float64)


def compiled(rnn):
    return rnnjit.compile(rnn, backend="tvm")


def test_sums_of_many_terms():
    # One chain of additions would be off by 4e-5 of the sum here, folded ones are by 1.3e-6.
    I = 4096
    rnn = nn.RNN(I, 3, nonlinearity="relu")
    with torch.no_grad():
        for weight in rnn.parameters():
            weight.fill_(0.0)
        rnn.weight_ih_l0.fill_(0.1)
    found = compiled(rnn)(torch.ones(1, 9, I))[0].double()
    expected = I * float(torch.tensor(0.1))
    assert ((found - expected).abs() / expected).max() < 5e-6


def everything(module, x, h0):
    """Outputs and gradients of a module, as one list."""
    inputs = [x.detach().requires_grad_(), h0.detach().requires_grad_()]
    y, h_n = module(*inputs)
    weights = list(module.parameters())
    return [y, h_n, *torch.autograd.grad(y.sin().sum() + h_n.sum(), [*inputs, *weights])]


@pytest.mark.parametrize("bidirectional", [False, True], ids=["one way", "both ways"])
def test_threads_take_packed_rows_in_turns(bidirectional, always_teams):
    torch.manual_seed(0)
    rnn = nn.RNN(37, 70, bidirectional=bidirectional, dtype=torch.float64)
    packed = pack_sequence([torch.randn(30 - b, 37, dtype=torch.float64) for b in range(13)])
    rows = rnnjit.Rows(30, 13, len(packed.data), packed.batch_sizes)
    layer = rnnjit.LayerSpec(RNN_TANH, 37, 70, 1 + bidirectional, True)
    packed.data.requires_grad_()
    results, before = [], torch.get_num_threads()
    try:
        for module, threads in ((rnn, 1), (compiled(rnn), 3), (compiled(rnn), 5)):
            torch.set_num_threads(threads)
            assert module is rnn or plan(layer, rows, threads, 5).stride > 1
            y, h = module(packed)
            loss = y.data.sin().sum() + h.square().sum()
            grads = torch.autograd.grad(loss, [packed.data, *rnn.parameters()])
            results.append((y.data, h, *grads))
    finally:
        torch.set_num_threads(before)
    for found in results[1:]:
        torch.testing.assert_close(found, results[0], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("shift", [1, 3])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_memory_aligned_to_an_element_and_no_more(dtype, shift):
    # Vector loads that assume what TVM assumes by default, 64 bytes, would kill the process.
    torch.manual_seed(0)
    rnn = nn.RNN(6, 40).double()
    twin = nn.RNN(6, 40).to(dtype)
    x, h0 = torch.randn(5, 9, 6, dtype=torch.float64), torch.randn(1, 9, 40, dtype=torch.float64)

    def shifted(tensor):
        room = torch.empty(tensor.numel() + shift, dtype=dtype)
        view = room[shift:].view(tensor.shape)
        return view.copy_(tensor)

    for to, source in zip(twin.parameters(), rnn.parameters(), strict=True):
        to.data = shifted(source.detach())
    found = everything(compiled(twin), shifted(x), shifted(h0))
    tolerance = 1e-4 if dtype == torch.float32 else 1e-11
    for ours, exact in zip(found, everything(rnn, x, h0), strict=True):
        torch.testing.assert_close(ours.double(), exact, rtol=tolerance, atol=tolerance)

"""Protects calls with resets by CUDA kernels: right, and without a value that the host reads."""

import pytest
import torch
from cuda_layers import Simulated
from cut_by_hand import cut_by_hand
from layer_kinds import KINDS, as_hx, states
from torch.autograd import profiler

import rnnjit
from rnnjit import Recurrent, cells
from rnnjit.reference import ReferenceBackend
from rnnjit_cuda.kernels import FAMILIES

T, B, I, H = 5, 3, 2, 4
CLOSE = {"rtol": 1e-11, "atol": 1e-12}
#: Operators whose result, or whose shape, is data that the host has to wait for.
READS = {
    *("aten::_local_scalar_dense", "aten::item", "aten::is_nonzero", "aten::nonzero"),
    *("aten::masked_select", "aten::equal", "aten::unique_consecutive", "aten::_unique2"),
}


def random(*shape):
    return torch.randn(shape, dtype=torch.float64).requires_grad_()


def reads_of(function):
    """The operators of `READS` that a function calls, in both passes."""
    with profiler.profile() as found:
        function()
    return READS & {event.name for event in found.function_events}


#: Each family, each of torch's layers, and each kind of what resets start from.
CALLS = [
    ("register", "LSTM", "rows"),
    ("block", "GRU", "zeros"),
    ("grid", "RNN", "vectors"),
    ("stream", "LSTM", "zeros"),
    ("step", "GRU", "rows"),
]


@pytest.mark.parametrize(("family", "kind", "form"), CALLS)
def test_values_and_gradients_are_those_of_sequences_cut_by_hand(family, kind, form):
    assert family in FAMILIES
    torch.manual_seed(0)
    rnn = KINDS[kind](I, H, bidirectional=True).double()
    count = 2 if kind == "LSTM" else 1
    x, mask = random(T, B, I), torch.rand(T, B) < 0.4
    mask[0, 1] = mask[T - 1, 2] = True
    hx, shape = [random(2, B, H) for _ in range(count)], {"rows": (T, B), "vectors": ()}.get(form)
    starts = [random(1, *shape, 2 * H) for _ in range(count)] if form != "zeros" else []
    wide = [each.view(1, *(shape or (1, 1)), -1).expand(1, T, B, 2 * H) for each in starts]
    wide = wide or [torch.zeros(1, T, B, 2 * H).double()] * count
    fast = rnnjit.compile(rnn, backend=Simulated(family), recompute=form == "rows")
    y, last = fast(x, as_hx(hx), mask, as_hx(starts) if starts else None)
    found, expected = (y, *states(last)), cut_by_hand(rnn, x, hx, mask, wide)
    torch.testing.assert_close(found, expected, **CLOSE)
    leaves = [x, *hx, *starts, *rnn.parameters()]
    seeds = [torch.randn_like(each) for each in found]
    ours = torch.autograd.grad(found, leaves, seeds)
    torch.testing.assert_close(ours, torch.autograd.grad(expected, leaves, seeds), **CLOSE)


@pytest.mark.parametrize("steps", [T, 1])
@pytest.mark.parametrize("kind", ["GRU", "own"])
def test_no_value_is_read_by_the_host(kind, steps):
    torch.manual_seed(0)
    rnn = KINDS["GRU"](I, H) if kind == "GRU" else Recurrent(cells.LeakyRNN(I, H, sigma=0.2))
    fast, x = rnnjit.compile(rnn, backend=Simulated("block")), torch.randn(steps, B, I)
    x, mask, start = x.requires_grad_(), torch.rand(steps, B) < 0.5, torch.randn(1, H)

    def call():
        y, last = fast(x, None, mask, start)
        torch.autograd.grad((y, last), (x, *fast.parameters()), (y, last))

    call()
    assert not reads_of(call)
    fast.backend = ReferenceBackend()
    assert reads_of(call)

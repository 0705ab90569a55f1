"""Protects bfloat16 on the CPU: rounded once, the same bits in any plan, as exact as eager."""

import instruction_sets
import pytest
import torch
from teams import forget_plans
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import rnnjit
from rnnjit_numba import library

# Eager says so of its own call.
pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")

BF16 = torch.bfloat16
KINDS = {
    "rnn": (nn.RNN, {}),
    "lstm": (nn.LSTM, {}),
    "gru": (nn.GRU, {}),
    "projected": (nn.LSTM, {"proj_size": 9}),
    "bidirectional": (nn.LSTM, {"bidirectional": True, "num_layers": 2}),
}


EMULATED = pytest.param(
    "amx-emulated",
    marks=[
        pytest.mark.full,
        pytest.mark.skipif(
            "avx512" not in instruction_sets.possible(), reason="it computes with AVX-512"
        ),
    ],
)


@pytest.fixture(autouse=True, params=["", EMULATED], ids=["host", "amx-emulated"])
def products(request, monkeypatch):
    """How products are computed: by the best that the machine has, and by emulated tiles."""
    if request.param:
        monkeypatch.setenv("RNNJIT_ISA", request.param)
        monkeypatch.setattr(library.library, "made", {})
    forget_plans()
    yield
    forget_plans()


def sum_of_two(pairs, weights=(1.0, 1.0)):
    """The sum of each pair of numbers, or of their products with weights, as a layer stores it."""
    rnn = nn.RNN(2, 1, nonlinearity="relu", bias=False).to(BF16)
    with torch.no_grad():
        rnn.weight_ih_l0.copy_(torch.tensor([weights]))
        rnn.weight_hh_l0.zero_()
        return rnnjit.compile(rnn, backend="numba")(pairs.view(1, -1, 2))[0].flatten()


def test_a_state_is_rounded_once_to_the_nearest_ties_to_even():
    torch.manual_seed(0)
    large, small = torch.rand(2, 4000)
    # Every exponent of the smaller number, ties among the sums, and the largest numbers.
    pairs = torch.stack([large * 2.0 ** torch.randint(-20, 90, (4000,)), small], -1).to(BF16)
    ties = torch.tensor([[1.0, 2.0**-8], [1 + 2.0**-7, 2.0**-8], [1.0, 2.0**-8 + 2.0**-15]])
    most = torch.finfo(BF16).max
    ends = torch.tensor([[most, most], [most, 2.0**118], [most, 2.0**120], [2.0**-100, 2.0**-107]])
    pairs = torch.cat([pairs, ties.to(BF16), ends.to(BF16)])
    assert torch.equal(sum_of_two(pairs), pairs.float().sum(-1).to(BF16))


def test_nan_and_infinities_stay_what_they_are():
    inf, nan = float("inf"), float("nan")
    pairs = torch.tensor([[inf, 1.0], [nan, 1.0], [inf, -inf], [1.0, nan]]).to(BF16)
    found = sum_of_two(pairs)
    assert found[0] == inf
    assert found[1:].isnan().all()


def results(module, x, grad):
    """Y, and the gradients of x and the weights."""
    leaf = x.clone().requires_grad_()
    y, _ = module(leaf)
    return [y.detach(), *torch.autograd.grad(y, [leaf, *module.parameters()], grad)]


def case(kind, T, B, I, H):
    """A layer, its input, and the gradient of its output."""
    torch.manual_seed(0)
    make, options = KINDS[kind]
    rnn = make(I, H, **options).to(BF16)
    y, _ = rnn(torch.zeros(1, 1, I, dtype=BF16))
    return rnn, torch.randn(T, B, I).to(BF16), torch.randn(T, B, y.shape[-1]).to(BF16)


# Odd and even sizes: an odd number of terms leaves half a pair. Weights are packed for many rows.
@pytest.mark.parametrize(
    "sizes",
    [(9, 17, 13, 40), (20, 3, 30, 33), (3, 70, 30, 33)],
    ids=["odd-I", "odd-H", "odd-H-packed"],
)
@pytest.mark.parametrize("kind", KINDS)
def test_results_are_as_exact_as_eager_s(kind, sizes):
    rnn, x, grad = case(kind, *sizes)
    fast, eager = results(rnnjit.compile(rnn, backend="numba"), x, grad), results(rnn, x, grad)
    truth = results(rnn.double(), x.double(), grad.double())
    for got, own, exact in zip(fast, eager, truth, strict=True):
        assert got.dtype == BF16
        scale = exact.abs().max()
        error, allowed = ((value.double() - exact).norm() for value in (got, own))
        assert error <= 1.5 * allowed + 2.0**-9 * scale


@pytest.mark.parametrize("kind", KINDS)
def test_threads_and_company_change_no_bit(kind):
    rnn, x, grad = case(kind, 7, 40, 13, 72)
    fast = rnnjit.compile(rnn, backend="numba")
    torch.set_num_threads(1)
    alone = results(fast, x, grad)
    torch.set_num_threads(2)
    for value, same in zip(results(fast, x, grad), alone, strict=True):
        assert torch.equal(value, same)
    with torch.no_grad():
        for b in (0, 17, 39):
            assert torch.equal(fast(x[:, b : b + 1].contiguous())[0][:, 0], alone[0][:, b])


@pytest.mark.parametrize("kind", ["rnn", "lstm", "gru"])
def test_a_packed_sequence_has_the_bits_of_a_padded_one(kind):
    rnn, x, _ = case(kind, 12, 9, 5, 21)
    fast, lengths = (
        rnnjit.compile(rnn, backend="numba"),
        torch.tensor([12, 3, 7, 1, 12, 5, 9, 2, 11]),
    )
    with torch.no_grad():
        padded, _ = fast(x)
        packed, _ = fast(pack_padded_sequence(x, lengths, enforce_sorted=False))
    found, _ = pad_packed_sequence(packed)
    for b, length in enumerate(lengths):
        assert torch.equal(found[:length, b], padded[:length, b])

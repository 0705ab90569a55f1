"""Protects the fast path for packed input: it gives what the slow path gives, or is not taken."""

import copy

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.nn.utils.rnn import PackedSequence, pack_sequence

import rnnjit
from rnnjit.frontend import compiled_base

I, H = 6, 5
LENGTHS = [[4, 2, 1], [7, 7, 3, 1], [2], [5, 5, 5]]


def pack(lengths, dtype=torch.float32, *, ordered=True):
    torch.manual_seed(len(lengths))
    given = [torch.randn(n, I).to(dtype) for n in lengths]
    return pack_sequence(given if ordered else given[::-1], enforce_sorted=ordered)


def states(layer, batch, dtype=torch.float32):
    torch.manual_seed(3)
    count = layer.num_layers * (1 + layer.bidirectional)
    made = [torch.randn(count, batch, H).to(dtype) for _ in range(1 + isinstance(layer, nn.LSTM))]
    return made[0] if len(made) == 1 else tuple(made)


def results(layer, given, hx):
    """The parts of the results, and with gradients those of the weights."""
    y, h_n = layer(given, hx)
    found = [y.data, *(h_n if isinstance(h_n, tuple) else (h_n,))]
    if not torch.is_grad_enabled():
        return found
    loss = sum(each.double().square().sum() for each in found)
    return [*found, *torch.autograd.grad(loss, list(layer.parameters()))]


@pytest.fixture
def lowered(monkeypatch):
    """The calls that take the long way."""
    seen, own = [], compiled_base.lower_sequence
    monkeypatch.setattr(
        compiled_base, "lower_sequence", lambda *args: (seen.append(args), own(*args))[1]
    )
    return seen


@pytest.mark.parametrize("recorded", [True, False], ids=["grad", "no grad"])
@pytest.mark.parametrize("given", [True, False], ids=["hx", "zeros"])
@pytest.mark.parametrize("ordered", [True, False], ids=["sorted", "unsorted"])
@pytest.mark.parametrize(
    ("kind", "options"), [(nn.LSTM, {}), (nn.GRU, {"num_layers": 2, "bidirectional": True})]
)
def test_calls_of_other_sizes(kind, options, ordered, given, recorded, lowered):
    torch.manual_seed(0)
    layer = kind(I, H, **options)
    fast = rnnjit.compile(layer, backend="numba")
    with torch.set_grad_enabled(recorded):
        for lengths in LENGTHS:
            x, wide = pack(lengths, ordered=ordered), copy.deepcopy(layer).double()
            hx = states(layer, len(lengths)) if given else None
            exact = states(layer, len(lengths)) if given else None
            if given:
                exact = hx.double() if kind is nn.GRU else tuple(h.double() for h in hx)
            found = results(fast, x, hx)
            assert len(lowered) == 1
            torch.testing.assert_close(
                found, results(wide, x.to(torch.float64), exact), check_dtype=False
            )
            fresh = rnnjit.compile(layer, backend="numba")
            for one, other in zip(found, results(fresh, x, hx), strict=True):
                assert torch.equal(one, other)
            lowered.pop()
            y = fast(x, hx)[0]
            assert type(y) is PackedSequence
            for part, own in zip(y[1:], x[1:], strict=True):
                assert part is own


def test_batch_sizes_may_change_before_the_backward_pass():
    layer, x = nn.GRU(I, H), pack([4, 2, 1])
    fast, sizes = rnnjit.compile(layer, backend="numba"), x.batch_sizes.clone()
    want = results(layer, x, None)
    for _ in range(2):
        y, h_n = fast(x)
        x.batch_sizes.fill_(1)
        loss = y.data.double().square().sum() + h_n.double().square().sum()
        grads = torch.autograd.grad(loss, list(fast.parameters()))
        torch.testing.assert_close([y.data, h_n, *grads], want)
        x.batch_sizes.copy_(sizes)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_what_changes_takes_the_long_way(lowered):
    layer, x = nn.RNN(I, H), pack([4, 2, 1])
    fast = rnnjit.compile(layer, backend="numba")

    fast(x)

    def goes_long(call):
        lowered.clear()
        found, want = call(fast), call(layer)
        torch.testing.assert_close(found, want, rtol=0.02, atol=0.02)
        return len(lowered) == 1

    def plain(module, given=x):
        y, h_n = module(given)
        return y.data, h_n

    def tangent(module):
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(x.data, torch.ones_like(x.data))
            return forward_ad.unpack_dual(module(x._replace(data=dual))[1])

    def under_autocast(module):
        with torch.autocast("cpu", torch.bfloat16):
            return plain(module)

    assert not goes_long(plain)
    assert goes_long(tangent)
    assert goes_long(under_autocast)
    assert goes_long(lambda module: plain(module, x._replace(data=x.data.clone().requires_grad_())))
    longer = x._replace(data=torch.cat([x.data, x.data]))  # torch does not read the rest
    assert goes_long(lambda module: plain(module, longer))
    layer.weight_hh_l0.requires_grad_(False)
    assert goes_long(plain)
    layer.weight_hh_l0 = fast.weight_hh_l0 = nn.Parameter(torch.zeros(H, H))
    assert not goes_long(plain)  # it has the new weight all the same
    layer.double()
    fast.double()
    assert goes_long(lambda module: plain(module, x.to(torch.float64)))


def test_permutations_of_one_sequence_may_have_no_dimension():
    layer, one, none = nn.GRU(I, H), torch.tensor([0]), torch.tensor(0)
    fast, (data, sizes, *_) = rnnjit.compile(layer, backend="numba"), pack([3])
    for orders in ((none, none), (one, none), (none, one)):
        x = PackedSequence(data, sizes, *orders)
        for _ in range(2):
            torch.testing.assert_close(results(fast, x, None), results(layer, x, None))

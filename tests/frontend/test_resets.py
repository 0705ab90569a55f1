"""Protects resets within sequences, against eager on sequences that are cut by hand."""

from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence

import rnnjit

T, B, I, H = 7, 4, 3, 5
CLOSE = {"rtol": 1e-10, "atol": 1e-12}
CONFIGURATIONS = [
    {},
    {"num_layers": 2, "nonlinearity": "relu"},
    {"bidirectional": True},
    {"num_layers": 2, "bidirectional": True},
    {"batch_first": True, "bias": False},
]
MASKS = {
    "none": lambda: torch.zeros(T, B, dtype=torch.bool),
    "all": lambda: torch.ones(T, B, dtype=torch.bool),
    "first": lambda: torch.arange(T)[:, None].expand(T, B) == 0,
    "last": lambda: torch.arange(T)[:, None].expand(T, B) == T - 1,
    "one-sequence": lambda: (torch.arange(T)[:, None] == 3) & (torch.arange(B) == 2),
    "random": lambda: torch.rand(T, B, generator=torch.Generator().manual_seed(1)) < 0.3,
}


def by_hand(rnn, x, hx, reset):
    """Each sequence cut where it is reset, its parts run by eager one after the other."""
    D, layers = (2 if rnn.bidirectional else 1), rnn.num_layers
    ys, states = [], []
    for b in range(x.shape[1]):
        cuts = [0, *(t for t in range(1, T) if reset[t, b]), T]
        parts, ends = [], []
        for start, stop in pairwise(cuts):
            h0 = torch.zeros(layers * D, H, dtype=x.dtype)
            if hx is not None:
                keep = torch.zeros(layers * D, 1, dtype=torch.bool)
                keep[0::D] = start == 0 and not reset[0, b]
                if D == 2:
                    keep[1::2] = stop == T
                h0 = torch.where(keep, hx[:, b], h0)
            y, h = torch.func.functional_call(
                rnn, dict(rnn.named_parameters()), (x[start:stop, b], h0)
            )
            parts.append(y)
            ends.append(h)
        ys.append(torch.cat(parts))
        last = ends[-1].clone()
        if D == 2:
            last[1::2] = ends[0][1::2]
        states.append(last)
    return torch.stack(ys, 1), torch.stack(states, 1)


@pytest.mark.parametrize("given", [False, True], ids=["zeros", "hx"])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("options", CONFIGURATIONS, ids=str)
def test_it_is_as_if_sequences_were_cut(options, mask, given):
    torch.manual_seed(0)
    rnn = nn.RNN(I, H, dtype=torch.float64, **options)
    module = rnnjit.compile(rnn)
    x = torch.randn(T, B, I, dtype=torch.float64, requires_grad=True)
    states = rnn.num_layers * (2 if rnn.bidirectional else 1)
    hx = torch.randn(states, B, H, dtype=torch.float64, requires_grad=True) if given else None
    reset = MASKS[mask]()
    leaves = [leaf for leaf in (x, hx, *rnn.parameters()) if leaf is not None]
    if rnn.batch_first:
        y, h = module(x.transpose(0, 1), hx, reset=reset.t())
        y = y.transpose(0, 1)
    else:
        y, h = module(x, hx, reset=reset)
    cut = nn.RNN(I, H, dtype=torch.float64, **{**options, "batch_first": False})
    cut.load_state_dict(rnn.state_dict())
    expected = by_hand(cut, x, hx, reset)
    torch.testing.assert_close((y, h), expected, **CLOSE)
    cut_leaves = [leaf for leaf in (x, hx, *cut.parameters()) if leaf is not None]
    weights = torch.randn_like(y), torch.randn_like(h)
    found = torch.autograd.grad((y, h), leaves, weights, allow_unused=True)
    wanted = torch.autograd.grad(expected, cut_leaves, weights, allow_unused=True)
    for got, want in zip(found, wanted, strict=True):
        want = torch.zeros_like(got) if want is None else want
        torch.testing.assert_close(got, want, **CLOSE)


def test_unbatched():
    module = rnnjit.compile(nn.RNN(I, H, dtype=torch.float64))
    x, reset = torch.randn(T, I, dtype=torch.float64), torch.arange(T) == 4
    y, h = module(x, reset=reset)
    first, second = module(x[:4])[0], module(x[4:])
    torch.testing.assert_close((y, h), (torch.cat([first, second[0]]), second[1]), **CLOSE)


def test_gradients_do_not_cross_a_reset():
    module = rnnjit.compile(nn.RNN(I, H, dtype=torch.float64))
    x = torch.randn(T, B, I, dtype=torch.float64, requires_grad=True)
    y, _ = module(x, reset=(torch.arange(T) == 4)[:, None].expand(T, B))
    (grad,) = torch.autograd.grad(y[5].sum(), x)
    assert not grad[:4].any()
    assert grad[4].all()


def test_every_backend_gives_the_same():
    torch.manual_seed(0)
    rnn = nn.RNN(I, H, 2, bidirectional=True, dtype=torch.float64)
    x, reset = torch.randn(T, B, I, dtype=torch.float64), MASKS["random"]()
    expected = by_hand(rnn, x, None, reset)
    for name, backend in rnnjit.backends().items():
        if not backend.missing():
            found = rnnjit.compile(rnn, backend=name)(x, reset=reset)
            torch.testing.assert_close(found, expected, **CLOSE)


X, RESET = torch.randn(T, B, I), torch.ones(T, B, dtype=torch.bool)
BAD = {
    "packed": ((pack_sequence([X[:, 0]]),), RESET, TypeError, "dense input"),
    "dtype": ((X,), RESET.float(), TypeError, r"boolean Tensor, got torch\.float32"),
    "kind": ((X,), True, TypeError, "boolean Tensor, got bool"),
    "shape": ((X,), RESET[1:], ValueError, r"\[7, 4\], got \[6, 4\]"),
    "device": ((X,), RESET.to("meta"), RuntimeError, "reset is on meta"),
    "input": ((X[0, 0],), RESET, ValueError, "1-D"),
    "hx": ((X, torch.zeros(1, 3, H)), RESET, RuntimeError, "hx must have shape"),
}


@pytest.mark.parametrize("what", BAD)
def test_what_makes_no_sense(what):
    inputs, reset, error, said = BAD[what]
    module = rnnjit.compile(nn.RNN(I, H))
    with pytest.raises(error, match=said):
        module(*inputs, reset=reset)
    assert module(X, reset=RESET)[0].shape == (T, B, H)


def test_no_sequences():
    module = rnnjit.compile(nn.RNN(I, H))
    y, h = module(torch.zeros(T, 0, I), reset=torch.zeros(T, 0, dtype=torch.bool))
    assert (y.shape, h.shape) == ((T, 0, H), (1, 0, H))


@pytest.mark.parametrize("batch_first", [False, True], ids=["", "batch-first"])
@pytest.mark.parametrize("form", ["zeros", "vector", "each"])
@pytest.mark.parametrize("given", [False, True], ids=["no-hx", "hx"])
def test_a_reset_before_a_single_step_replaces_the_states(form, given, batch_first):
    torch.manual_seed(0)
    lstm = nn.LSTM(3, 4, num_layers=2, batch_first=batch_first).double()
    fast, options = rnnjit.compile(lstm), {"dtype": torch.float64}
    shape = (5, 1) if batch_first else (1, 5)
    x, mask = torch.randn(*shape, 3, **options), torch.rand(shape) < 0.5
    assert 0 < mask.sum() < 5
    hx = tuple(torch.randn(2, 5, 4, **options).requires_grad_() for _ in range(2))
    starts = {"vector": (2, 4), "each": (2, *shape, 4)}.get(form)
    anew = starts and tuple(torch.randn(starts, **options).requires_grad_() for _ in range(2))
    found = fast(x, hx if given else None, reset=mask, reset_to=anew)
    before = hx if given else tuple(torch.zeros(2, 5, 4, **options) for _ in range(2))
    to = [torch.zeros(2, 1, 4, **options)] * 2
    if anew:
        to = [each.unsqueeze(1) if form == "vector" else each.reshape(2, 5, 4) for each in anew]
    cut = tuple(torch.where(mask.view(1, 5, 1), a, b) for a, b in zip(to, before, strict=True))
    expected = lstm(x, cut)
    leaves = [*(hx if given else ()), *(anew or ()), *lstm.parameters()]
    pairs = zip((found[0], *found[1]), (expected[0], *expected[1]), strict=True)
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs)
    ours, theirs = (
        torch.autograd.grad(y.sin().sum() + c.square().sum(), leaves)
        for y, (_, c) in (found, expected)
    )
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)

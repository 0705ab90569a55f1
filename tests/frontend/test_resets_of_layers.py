"""Protects resets of nn.LSTM and nn.GRU, and `reset_to`, against eager on sequences cut by hand."""

import pytest
import torch
from cut_by_hand import cut_by_hand
from layer_kinds import as_hx, states
from torch import nn

import rnnjit

T, B, I, H = 6, 3, 3, 4
CLOSE = {"rtol": 1e-10, "atol": 1e-12}
DOUBLE = {"dtype": torch.float64}
GENERATOR = torch.Generator().manual_seed(1)
RESET = torch.rand(T, B, generator=GENERATOR) < 0.4
#: Kind, configuration, the backend, whether there is hx, and where resets lead to.
CASES = {
    "lstm": (nn.LSTM, {}, "auto", True, None),
    "lstm-projected": (nn.LSTM, {"proj_size": 2, "num_layers": 2}, "eager", False, None),
    "lstm-two-ways": (nn.LSTM, {"bidirectional": True, "proj_size": 3}, "eager", True, None),
    "gru": (nn.GRU, {"num_layers": 2, "bidirectional": True}, "eager", True, None),
    "gru-batch-first": (nn.GRU, {"batch_first": True, "bias": False}, "auto", False, None),
    "lstm-to-steps": (nn.LSTM, {}, "eager", False, "steps"),
    "lstm-two-ways-to-steps": (
        *(nn.LSTM, {"bidirectional": True, "num_layers": 2, "proj_size": 2}, "auto"),
        *(True, "steps"),
    ),
    "lstm-to-vector": (nn.LSTM, {"num_layers": 2}, "eager", True, "vector"),
    "gru-to-steps": (nn.GRU, {"batch_first": True, "num_layers": 2}, "eager", True, "steps"),
    "gru-to-vector": (nn.GRU, {"bidirectional": True}, "auto", False, "vector"),
    "rnn-to-steps": (nn.RNN, {"bidirectional": True, "batch_first": True}, "auto", True, "steps"),
    "rnn-to-vector": (nn.RNN, {"num_layers": 2}, "auto", False, "vector"),
}


def state_sizes(rnn):
    """The features of each state."""
    return (rnn.proj_size or H, H) if isinstance(rnn, nn.LSTM) else (H,)


@pytest.mark.parametrize("case", CASES)
def test_it_is_as_if_sequences_were_cut(case):
    kind, options, backend, given, to = CASES[case]
    torch.manual_seed(0)
    rnn = kind(I, H, **DOUBLE, **options)
    L, D, first = rnn.num_layers, (2 if rnn.bidirectional else 1), rnn.batch_first
    x = torch.randn(T, B, I, **DOUBLE, requires_grad=True)
    hx = [torch.randn(L * D, B, size, **DOUBLE, requires_grad=True) for size in state_sizes(rnn)]
    steps = {"steps": (T, B), "vector": ()}.get(to, ())
    shapes = [(L, *steps, D * size) for size in state_sizes(rnn)]
    starts = [torch.randn(shape, **DOUBLE, requires_grad=True) for shape in shapes]
    leaves = [x, *(hx if given else ()), *(starts if to else ())]

    fast = rnnjit.compile(rnn, backend=backend) if backend == "eager" else forced(rnn)
    turned = [start.transpose(1, 2) if first and to == "steps" else start for start in starts]
    y, last = fast(
        x.transpose(0, 1) if first else x,
        as_hx(hx) if given else None,
        reset=RESET.t() if first else RESET,
        reset_to=as_hx(turned) if to else None,
    )
    found = (y.transpose(0, 1) if first else y, *states(last))

    cut = kind(I, H, **DOUBLE, **{**options, "batch_first": False})
    cut.load_state_dict(rnn.state_dict())
    wide = [
        start if to == "steps" else start[:, None, None].expand(L, T, B, -1) for start in starts
    ]
    expected = cut_by_hand(
        *(cut, x, hx if given else [torch.zeros_like(h) for h in hx], RESET),
        wide if to else [torch.zeros_like(start) for start in wide],
    )
    torch.testing.assert_close(found, expected, **CLOSE)
    seeds = [torch.randn_like(each) for each in found]
    got = torch.autograd.grad(found, [*leaves, *rnn.parameters()], seeds)
    wanted = torch.autograd.grad(
        expected, [*leaves, *cut.parameters()], seeds, materialize_grads=True
    )
    torch.testing.assert_close(got, wanted, **CLOSE)


def forced(rnn):
    """Compiled for "auto", also where only eager computes such layers."""
    fast = rnnjit.compile(rnn, backend="eager")
    fast.backend = "auto"
    return fast


def test_every_step_starts_anew():
    # Then each step is a cell by itself, whatever the steps before.
    torch.manual_seed(0)
    rnn, cell = nn.LSTM(I, H, **DOUBLE), nn.LSTMCell(I, H, **DOUBLE)
    for name, weight in cell.named_parameters():
        weight.data = getattr(rnn, f"{name}_l0").data
    x, h, c = (torch.randn(T, B, size, **DOUBLE) for size in (I, H, H))
    y, (h_n, c_n) = forced(rnn)(x, reset=torch.ones(T, B) > 0, reset_to=[h, c])
    hs, cs = cell(x.flatten(0, 1), (h.flatten(0, 1), c.flatten(0, 1)))
    torch.testing.assert_close(y.flatten(0, 1), hs, **CLOSE)
    torch.testing.assert_close((h_n[0], c_n[0]), (hs[-B:], cs[-B:]), **CLOSE)


def test_unbatched():
    torch.manual_seed(0)
    fast = forced(nn.GRU(I, H, 2, **DOUBLE))
    x, reset, to = torch.randn(T, I, **DOUBLE), torch.arange(T) == 4, torch.randn(2, T, H, **DOUBLE)
    y, h = fast(x, reset=reset, reset_to=to)
    first, (second, last) = fast(x[:4])[0], fast(x[4:], to[:, 4])
    torch.testing.assert_close((y, h), (torch.cat([first, second]), last), **CLOSE)


@pytest.mark.parametrize("reset", [False, True])
def test_the_gradient_does_not_depend_on_whether_a_mask_is_empty(reset):
    fast = forced(nn.GRU(I, H, **DOUBLE)).requires_grad_(False)
    to = torch.ones(H, **DOUBLE, requires_grad=True)
    mask = torch.full((T, B), reset)
    y, _ = fast(torch.ones(T, B, I, **DOUBLE), reset=mask, reset_to=to)
    (grad,) = torch.autograd.grad(y.sum(), to)
    assert bool(grad.any()) is reset


X, ZEROS = torch.zeros(T, B, I), torch.zeros(T, B, H)
BAD = {
    "alone": (None, ZEROS, TypeError, "reset_to needs reset"),
    "kind": (RESET, 0.0, TypeError, "reset_to must be a Tensor, got float"),
    "several": (RESET, (ZEROS,), TypeError, "reset_to must be a Tensor, got tuple"),
    "sparse": (RESET, ZEROS.to_sparse(), TypeError, "reset_to must be a dense Tensor"),
    "shape": (
        *(RESET, ZEROS[1:], ValueError),
        r"\[1, 6, 3, 4\] or \[1, 4\] or \[6, 3, 4\] or \[4\].*, got \[5, 3, 4\]",
    ),
    "dtype": (RESET, ZEROS.double(), RuntimeError, r"reset_to is torch\.float64 but the input is"),
    "device": (RESET, ZEROS.to("meta"), RuntimeError, "reset_to is on meta"),
}
BAD_PAIRS = {
    "single": (ZEROS, TypeError, r"a tuple of 2 states \(h, c\), got Tensor"),
    "count": ((ZEROS,), ValueError, r"2 states \(h, c\), got 1"),
    "second": ((ZEROS, None), TypeError, r"reset_to\[1\] must be a Tensor, got NoneType"),
}


@pytest.mark.parametrize("what", [*BAD, *BAD_PAIRS])
def test_what_makes_no_sense(what):
    reset, to, error, said = BAD.get(what) or (RESET, *BAD_PAIRS[what])
    fast = forced(nn.GRU(I, H) if what in BAD else nn.LSTM(I, H))
    with pytest.raises(error, match=said):
        fast(X, reset=reset, reset_to=to)
    assert fast(X, reset=RESET)[0].shape == (T, B, H)

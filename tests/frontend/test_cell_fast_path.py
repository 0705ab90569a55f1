"""Protects the fast path of compiled cells, which takes the arguments without a layer's form."""

import pytest
import torch
from computing import usual
from eager_pair import CLOSE
from torch import nn

import rnnjit
from rnnjit.reference import ReferenceBackend
from rnnjit.testing import RecomputeBackend

B, I, H = 3, 4, 6
SHAPE = torch.Size([B, I])
KINDS = [nn.RNNCell, nn.LSTMCell, nn.GRUCell]
every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)


def make(kind):
    torch.manual_seed(0)
    return kind(I, H, dtype=torch.float64)


def state_of(kind, *shape):
    made = [torch.randn(*shape, dtype=torch.float64) for _ in range(1 + (kind is nn.LSTMCell))]
    return tuple(made) if len(made) > 1 else made[0]


def each(function, state):
    return tuple(map(function, state)) if isinstance(state, tuple) else function(state)


FORMS = {
    "zeros": lambda kind: (torch.randn(B, I, dtype=torch.float64), None),
    "given": lambda kind: (torch.randn(B, I, dtype=torch.float64), state_of(kind, B, H)),
    "strided x": lambda kind: (torch.randn(I, B, dtype=torch.float64).t(), state_of(kind, B, H)),
    "strided state": lambda kind: (
        torch.randn(B, I, dtype=torch.float64),
        each(lambda state: state.t(), state_of(kind, H, B)),
    ),
    "expanded state": lambda kind: (
        torch.randn(B, I, dtype=torch.float64),
        each(lambda state: state.expand(B, H), state_of(kind, 1, H)),
    ),
    "unbatched": lambda kind: (torch.randn(I, dtype=torch.float64), state_of(kind, H)),
}


@every_kind
@pytest.mark.parametrize("form", FORMS)
@torch.no_grad()
def test_calls_in_every_form_by_turns(kind, form):
    cell = make(kind)
    fast = rnnjit.compile(cell, backend=usual(kind))
    for other in (form, "given", form, "zeros", form):
        x, state = FORMS[other](kind)
        torch.testing.assert_close(fast(x, state), cell(x, state), **CLOSE)


@every_kind
@torch.no_grad()
def test_a_later_call_takes_it_and_its_results_are_new(kind):
    cell = make(kind)
    fast = rnnjit.compile(cell, backend=usual(kind))
    x, state = FORMS["given"](kind)
    first = fast(x, state)
    assert [*fast._fast_paths] == [SHAPE]
    kept = each(torch.clone, first)
    second = fast(x + 1, first)
    torch.testing.assert_close(first, kept, rtol=0, atol=0)
    torch.testing.assert_close(second, cell(x + 1, first), **CLOSE)
    each(lambda part: part.detach_().mul_(2), second)
    torch.testing.assert_close(fast(x, list(state) if type(state) is tuple else state), kept)
    assert len(fast._fast_paths[SHAPE]) == 1


@every_kind
def test_weights_biases_and_grad_mode_change_between_calls(kind):
    cell = make(kind)
    fast = rnnjit.compile(cell, backend=usual(kind))
    x, state = FORMS["given"](kind)
    for change in (
        lambda: cell.weight_hh.data.mul_(-1),
        lambda: setattr(fast, "bias_ih", nn.Parameter(torch.ones_like(fast.bias_ih))),
        lambda: cell.weight_ih.requires_grad_(False),
    ):
        with torch.no_grad():
            fast(x, state), fast(x, state)
            change()
            cell.load_state_dict(fast.state_dict())
            torch.testing.assert_close(fast(x, state), cell(x, state), **CLOSE)
        new = fast(x, state)
        assert (new if isinstance(new, torch.Tensor) else new[0]).requires_grad


class Odd(RecomputeBackend):
    """Computes cells by a shortcut that changes its results, or fails, after some calls."""

    name = "odd"
    calls = 0

    def __init__(self, change, after=0):
        self.change, self.after = change, after

    def cell_shortcut(self, spec, problem):
        own = ReferenceBackend().forward

        def run(x, hx, weights):
            self.calls += 1
            rows = rnnjit.Rows(1, len(x), len(x))
            states = tuple(state.unsqueeze(0) for state in hx)
            y, h_n, *_ = own(spec.layer(0), rows, x, states, weights, False)
            found = y, tuple(state.squeeze(0) for state in h_n)
            return found if self.calls <= self.after else self.change(found)

        return run


@torch.no_grad()
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda found: found[1], r"its shortcut: expected a pair \(y, h_n\)"),
        (lambda found: (found[0], (found[1][0][None],)), r"h_n\[0\]: expected shape \[3, 6\]"),
        (lambda found: (found[0].float(), found[1]), "y: expected .*float64"),
    ],
    ids=["no pair", "with time", "dtype"],
)
def test_a_shortcut_that_breaks_the_contract_is_named(change, words):
    fast = rnnjit.compile(make(nn.GRUCell), backend=Odd(change))
    x, state = FORMS["given"](nn.GRUCell)
    with pytest.raises(rnnjit.BackendError, match=words):
        fast(x, state)


@torch.no_grad()
def test_auto_goes_on_where_it_fails(monkeypatch):
    def fail(found):
        raise RuntimeError("no more")

    odd = Odd(fail, after=2)
    found = {"odd": odd, "eager": rnnjit.backends()["eager"]}
    monkeypatch.setattr("rnnjit.dispatch.registry._installed", lambda: found)
    cell = make(nn.LSTMCell)
    fast, (x, state) = rnnjit.compile(cell), FORMS["given"](nn.LSTMCell)
    for call in range(5):
        if call == 2:
            with pytest.warns(rnnjit.RNNJitWarning, match="no more"):
                got = fast(x, state)
        else:
            got = fast(x, state)
        torch.testing.assert_close(got, cell(x, state), **CLOSE)
    assert odd.calls == 3


@torch.no_grad()
@pytest.mark.parametrize("kind", [nn.LSTM, nn.LSTMCell], ids=lambda kind: kind.__name__)
def test_a_tensor_that_stands_twice_takes_the_fast_path(kind, monkeypatch):
    module = make(kind)
    fast = rnnjit.compile(module)
    shape = (B, I) if kind is nn.LSTMCell else (1, B, I)
    x, h = torch.randn(*shape, dtype=torch.float64), torch.zeros(*shape[:-1], H).double()
    fast(x, (h, h))
    monkeypatch.setattr(fast, "_lowered", None)  # the full path would call it
    torch.testing.assert_close(fast(x, (h, h)), module(x, (h, h)), **CLOSE)

"""Protects `rnnjit.explain`: which backend runs a call and why, without changing the module."""

import copy

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.nn.utils import parametrizations
from torch.nn.utils.rnn import pack_padded_sequence

import rnnjit
from rnnjit.testing import RecomputeBackend

X = torch.randn(5, 3, 8)


class Declining(RecomputeBackend):
    name = "declining"

    def why_not(self, spec, problem):
        return ["float32 is not supported", "B must be 1"]


class OwnForward(nn.RNN):
    def forward(self, input, hx=None):  # noqa: A002 - as nn.RNN has it
        return super().forward(input, hx)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(8)
        self.rnns = nn.ModuleList([nn.RNN(8, 8, 2, dropout=0.5), nn.LSTM(8, 8)])
        self.plain = [nn.RNN(8, 8)]
        self.own = OwnForward(8, 8)
        self.unused = nn.RNN(8, 8)
        self.cell = nn.GRUCell(8, 8)

    def forward(self, x):
        x = self.norm(x.flatten(0, 1)).view_as(x)
        x, _ = self.rnns[1](self.rnns[0](x)[0])
        with torch.no_grad():
            x, _ = self.plain[0](x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.own(x)[0]


def lines(explanation):
    return str(explanation).splitlines()


def test_a_compiled_rnn():
    fast = rnnjit.compile(nn.RNN(8, 16), backend="eager")
    assert lines(rnnjit.explain(fast, X)) == [
        "module: RNN(8, 16) -> eager",
        "  backend 'eager' was asked for by name",
        "  call: torch.float32 on cpu, T=5, B=3, dense, with gradients",
        "  eager: runs it",
    ]


def test_auto_names_every_backend_in_order():
    fast = rnnjit.compile(nn.RNN(8, 16))
    report = rnnjit.explain(fast, X).calls[0]
    assert [v.backend.name for v in report.verdicts] == list(rnnjit.backends())
    first = next(v.backend.name for v in report.verdicts if not v.reasons)
    assert report.chosen == first
    assert f"  {first}: runs it" in str(report)
    if first != "eager":
        assert str(report).endswith("  eager: could run it")


def test_an_eager_rnn_is_told_what_compiling_would_do():
    rnn = nn.RNN(8, 16)
    text = lines(rnnjit.explain(rnn, X))
    compiled = lines(rnnjit.explain(rnnjit.compile(rnn), X))
    assert text[1] == "  eager now; once compiled:"
    assert [text[0], *text[2:]] == compiled
    assert type(rnn) is nn.RNN


def test_a_named_backend_that_declines():
    fast = rnnjit.compile(nn.RNN(8, 16), backend=Declining())
    assert lines(rnnjit.explain(fast, X)) == [
        "module: RNN(8, 16)",
        "  backend 'declining' was asked for by name and declines: the call raises",
        "  call: torch.float32 on cpu, T=5, B=3, dense, with gradients",
        "  declining: declines: float32 is not supported; B must be 1",
    ]


def test_modules_without_a_recurrent_one():
    assert lines(rnnjit.explain(nn.Linear(8, 1), X)) == ["module: Linear", "  contains no RNN"]
    with pytest.raises(TypeError, match=r"module must be a torch.nn.Module, got int"):
        rnnjit.explain(3)


H0 = torch.zeros(3, 4)
KINDS = [
    (nn.LSTM(8, 4, proj_size=2), (X,), "LSTM(8, 4, proj_size=2)", "T=5, B=3, dense"),
    (nn.GRU(8, 4), (X, H0[None]), "GRU(8, 4)", "T=5, B=3, dense"),
    (nn.LSTMCell(8, 4), (X[0], (H0, H0)), "LSTMCell(8, 4)", "T=1, B=3, dense"),
    (nn.GRUCell(8, 4), (X[0],), "GRUCell(8, 4)", "T=1, B=3, dense"),
]


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize(
    ("module", "inputs", "kind", "call"),
    KINDS,
    ids=lambda v: None if isinstance(v, tuple) else str(v)[:12],
)
def test_other_layers_and_cells_are_reported_as_nn_rnn_is(module, inputs, kind, call):
    compiled = rnnjit.compile(module, backend="eager")
    assert lines(rnnjit.explain(compiled, *inputs)) == [
        f"module: {kind} -> eager",
        "  backend 'eager' was asked for by name",
        f"  call: torch.float32 on cpu, {call}, with gradients",
        "  eager: runs it",
    ]


def test_a_layer_that_no_compiled_backend_computes_is_left_eager(monkeypatch):
    eager = rnnjit.backends()["eager"]
    monkeypatch.setattr("rnnjit.dispatch.registry._installed", lambda: {"eager": eager})
    assert lines(rnnjit.explain(nn.GRU(8, 4), X)) == [
        "module: GRU(8, 4)",
        "  left eager: no compiled backend computes gru layers",
    ]


@pytest.mark.parametrize("backend", [None, "auto", "eager"])
def test_a_model_with_rnns_of_all_kinds(backend):
    model = Model()
    model = rnnjit.compile(model, backend=backend) if backend else model
    calls = {call.name: call for call in rnnjit.explain(model, X).calls}
    assert list(calls) == ["rnns.0", "rnns.1", "own", "unused", "cell", "plain[0]"]
    assert calls["rnns.0"].chosen is not None
    assert calls["rnns.0"].problem.needs_grad
    assert not calls["plain[0]"].problem.needs_grad
    lstm = calls["rnns.1"]
    if backend == "eager":
        assert (lstm.chosen, lstm.note) == ("eager", "backend 'eager' was asked for by name")
    else:
        assert lstm.chosen is not None
    assert calls["cell"].note.startswith("no call was seen")
    assert calls["own"].kind == "OwnForward(8, 8)"
    if backend == "eager":
        assert calls["own"].note.endswith("whichever backend is asked for: autocast is enabled")
    else:
        assert calls["own"].note.endswith("autocast is enabled: it runs in torch.bfloat16")
    assert calls["unused"].note.startswith("no call was seen")


def test_it_changes_nothing():
    torch.manual_seed(0)
    model = rnnjit.compile(nn.Sequential(nn.RNN(8, 8, 2, dropout=0.5)), backend=RecomputeBackend())
    model[0].register_forward_hook(lambda m, a, output: output)
    kept = copy.deepcopy(model.state_dict())
    parameters = [id(p) for p in model.parameters()]
    hooks = len(model[0]._forward_pre_hooks), len(model[0]._forward_hooks)
    random = torch.get_rng_state()
    rnnjit.explain(model, X)
    assert torch.equal(torch.get_rng_state(), random)
    torch.testing.assert_close(model.state_dict(), kept, rtol=0, atol=0)
    assert [id(p) for p in model.parameters()] == parameters
    assert (len(model[0]._forward_pre_hooks), len(model[0]._forward_hooks)) == hooks
    assert model[0].backend.name == "recompute"
    assert not model[0]._choices
    assert model[0].weight_hh_l0.grad is None


def test_buffers_stay_as_they_are():
    model = rnnjit.compile(Model())
    kept = copy.deepcopy(model.state_dict())
    rnnjit.explain(model, X)
    torch.testing.assert_close(model.state_dict(), kept, rtol=0, atol=0)
    model(X)
    assert not torch.equal(model.norm.running_mean, kept["norm.running_mean"])


def test_facts_of_the_call():
    fast = rnnjit.compile(nn.RNN(8, 16, dtype=torch.float64, batch_first=True))
    packed = pack_padded_sequence(X.double(), [5, 2, 1], enforce_sorted=False, batch_first=False)
    with torch.no_grad():
        text = str(rnnjit.explain(fast, packed))
    assert "  call: torch.float64 on cpu, T=5, B=3, packed, 8 rows, no gradients" in text
    assert "T=3, B=5, dense" in str(
        rnnjit.explain(fast, X.double(), torch.zeros(1, 5, 16).double())
    )


def torch_runs_it(explanation, reason):
    report = explanation.calls[0]
    assert report.chosen == "torch"
    assert reason in report.note
    return str(report).startswith("module: RNN(8, 16) -> torch\n  torch's own operators run it")


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_special_contexts():
    fast = rnnjit.compile(nn.RNN(8, 16), backend=Declining())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch_runs_it(rnnjit.explain(fast, X), "autocast is enabled")
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(X, X)
        assert torch_runs_it(rnnjit.explain(fast, dual), "forward-mode automatic differentiation")

    def inside(x):
        assert torch_runs_it(rnnjit.explain(fast, x), "a torch.func transform")
        return x

    torch.vmap(inside)(X)
    tagged = X.as_subclass(type("Tagged", (torch.Tensor,), {}))
    assert torch_runs_it(rnnjit.explain(fast, tagged), "an argument is a Tagged")


def test_parametrized_rnns_fit_a_line():
    rnn = parametrizations.weight_norm(nn.RNN(8, 16), "weight_hh_l0")
    for module in (rnn, rnnjit.compile(rnn, backend="eager")):
        module(X)
        assert "module: ParametrizedRNN(8, 16) -> " in lines(rnnjit.explain(module, X))[0]


def test_a_bad_call_raises_what_the_call_raises():
    with pytest.raises(ValueError, match="input must be 2-D"):
        rnnjit.explain(rnnjit.compile(nn.RNN(8, 16)), torch.zeros(8))

"""Protects `rnnjit.explain` without inputs: what is compiled, what is left as it is, and why."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import rnnjit
from rnnjit.cells import UGRNN
from rnnjit.testing import RecomputeBackend

AUTO = "auto takes the first of numba, tvm, inductor and eager that accepts a call"


@pytest.fixture(autouse=True)
def backends(monkeypatch):
    """Only those of the CPU, whatever this machine has."""
    found = {name: each for name, each in rnnjit.backends().items() if name != "cuda"}
    monkeypatch.setattr("rnnjit.dispatch.registry._installed", lambda: found)


class Sorting(nn.LSTM):
    """Overrides what torch's forward uses."""

    def permute_hidden(self, hx, permutation):
        return super().permute_hidden(hx, permutation)


class Looping(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.wide = nn.Linear(8, 8), 8

    def advance(self, x, h):
        return torch.tanh(self.linear(x) + h)

    def forward(self, x):
        h = torch.zeros_like(x[0])
        for row in x:
            h = self.advance(row, h)
        return h


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.ModuleDict({"lstm": nn.LSTM(8, 8), "gru": nn.GRU(8, 8)})
        self.head = nn.Linear(8, 8)
        self.plain = [nn.RNNCell(8, 8)]

    def forward(self, x):
        return self.head(self.encoder["gru"](self.encoder["lstm"](x)[0])[0])


def lines(model):
    return str(rnnjit.explain(model)).splitlines()


def test_before_and_after_compiling():
    names = "encoder.lstm, encoder.gru, plain[0]"
    kinds = ["encoder.lstm: LSTM(8, 8)", "encoder.gru: GRU(8, 8)", "plain[0]: RNNCell(8, 8)"]
    assert lines(Model()) == [
        "0 of 3 recurrent modules are compiled; rnnjit.compile(model) would compile " + names,
        *(f"{kind}: not compiled yet; then {AUTO}" for kind in kinds),
    ]
    assert lines(rnnjit.compile(Model())) == [
        "3 of 3 recurrent modules are compiled: " + names,
        *(f"{kind}: compiled: {AUTO}" for kind in kinds),
    ]


def test_what_is_left_and_why():
    model = Model()
    model.decoder = Sorting(8, 8)
    rnnjit.compile(model.encoder["gru"], inplace=True)
    model.cells = nn.ModuleList([UGRNN(8, 8), Looping()])
    first, *rest = lines(model)
    assert first == (
        "1 of 6 recurrent modules is compiled: encoder.gru; rnnjit.compile(model) would compile "
        "encoder.lstm, plain[0]; left as they are: decoder (it overrides permute_hidden), cells.0 "
        "(a Cell is one step, which its own forward runs; rnnjit.Recurrent(cell) is compiled, over "
        "time), cells.1 (its forward seems to loop over its advance; rnnjit.compile(model, "
        "cells={Looping: rnnjit.adapt('advance', ...)}) compiles such loops)"
    )
    assert "decoder: Sorting(8, 8): left eager: it overrides permute_hidden" in rest
    assert len(rest) == 6


def test_a_backend_that_is_named():
    named = rnnjit.compile(nn.LSTM(8, 8), backend="tvm")
    assert lines(named)[1] == "module: LSTM(8, 8): compiled for backend 'tvm'"


def test_a_backend_that_is_named_and_cannot_run_here():
    class Missing(RecomputeBackend):
        name = "missing"

        def missing(self):
            return ["it needs a drum"]

    assert lines(rnnjit.compile(nn.LSTM(8, 8), backend=Missing())) == [
        "1 of 1 recurrent module is compiled: module",
        "module: LSTM(8, 8): compiled for backend 'missing', which cannot run it here: it needs a "
        "drum",
    ]


class Mixing(UGRNN):
    """No backend computes it."""

    def forward(self, x, h):
        return torch.cumsum(super().forward(x, h), -1)


def test_a_recurrent_whose_cell_cannot_be_compiled():
    recurrent = rnnjit.Recurrent(Mixing(8, 8))
    summary, line = lines(recurrent)
    assert summary.startswith("0 of 1 recurrent module is compiled; left as it is: module (rnnjit")
    assert "rnnjit.compile raises, but for backend='eager': Mixing.forward" in line
    assert lines(rnnjit.compile(recurrent, backend="eager"))[1].endswith("for backend 'eager'")


def test_a_loop_that_is_adapted_is_compiled():
    how = rnnjit.adapt("advance", input_size="wide", hidden_size="wide")
    fast = rnnjit.compile(nn.Sequential(Looping()), cells={Looping: how})
    assert lines(fast) == [
        "1 of 1 recurrent module is compiled: 0",
        "0: Looping: the loop over its advance is compiled, as rnnjit.adapt describes it",
    ]


def test_weights_that_are_parametrized_are_no_hindrance():
    lstm = parametrizations.weight_norm(nn.LSTM(8, 8), "weight_hh_l0")
    assert lines(lstm)[1].startswith("module: ParametrizedLSTM(8, 8): not compiled yet")
    assert lines(rnnjit.compile(lstm))[1] == f"module: ParametrizedLSTM(8, 8): compiled: {AUTO}"


SCRIPTED = "TorchScript runs it: compile the model that was scripted"


@pytest.mark.filterwarnings("ignore:`torch.jit")
@pytest.mark.parametrize("make", [torch.jit.script, lambda m: torch.jit.trace(m, torch.ones(2, 8))])
def test_modules_of_torchscript(make):
    cells = make(nn.Sequential(nn.GRUCell(8, 8), nn.Linear(8, 8)))
    assert lines(nn.ModuleList([cells, nn.GRU(8, 8)])) == [
        "0 of 2 recurrent modules are compiled; rnnjit.compile(model) would compile 1; left as it "
        f"is: 0.0 ({SCRIPTED})",
        f"0.0: GRUCell: left as it is: {SCRIPTED}",
        f"1: GRU(8, 8): not compiled yet; then {AUTO}",
    ]


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_a_frozen_module_of_torchscript_keeps_only_its_graph():
    frozen = torch.jit.freeze(torch.jit.script(nn.Sequential(nn.Linear(8, 8), nn.GRU(8, 8))).eval())
    assert lines(frozen)[1] == (
        f"module: Sequential: left as it is: it calls aten::gru, and {SCRIPTED}"
    )
    assert lines(torch.jit.script(nn.Linear(2, 3)))[0].startswith("no recurrent module: ")


@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated")
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_quantized_modules():
    model = torch.ao.quantization.quantize_dynamic(Model(), {nn.LSTM, nn.Linear})
    prepared = torch.ao.nn.quantizable.LSTM(8, 8)
    why = "rnnjit.compile takes dynamically quantized qint8 modules"
    kinds = "torch.ao.nn.quantized.dynamic", "torch.ao.nn.quantizable"
    assert lines(nn.ModuleList([model.encoder["lstm"], prepared])) == [
        "0 of 2 recurrent modules are compiled; left as they are: "
        + ", ".join(f"{i} (it is of {kind}; {why})" for i, kind in enumerate(kinds)),
        *(f"{i}: LSTM: left as it is: it is of {kind}; {why}" for i, kind in enumerate(kinds)),
    ]


def test_many_modules_are_counted():
    fast = rnnjit.compile(nn.ModuleList(nn.RNNCell(2, 3) for _ in range(10)))
    assert lines(fast)[0] == (
        "10 of 10 recurrent modules are compiled: 0, 1, 2, 3, 4, 5, 6, 7 and 2 more"
    )
    assert len(lines(fast)) == 11


def test_models_without_a_recurrent_one():
    (line,) = lines(nn.Sequential(nn.Linear(1, 1)))
    assert line.startswith("no recurrent module: Sequential has 2 modules, none of them one of GRU")
    assert rnnjit.explain(nn.Linear(1, 1)).calls == ()

"""Protects autotuning of users' cells: what is measured is what `auto` is asked for."""

import pytest
import torch
from fake_clock import FakeClock, Timed
from torch import nn

import rnnjit
from rnnjit.reference import BACKEND as EAGER


class Leaky(rnnjit.Cell):
    """Its `unused` gets no gradient, and one of its states needs none."""

    def __init__(self, input_size, hidden_size, sigma=0.0):
        super().__init__(input_size, hidden_size, states=("h", "count"))
        self.sigma = sigma
        self.unused = nn.Parameter(torch.ones(()))

    def forward(self, x, h, count):
        h = 0.8 * h + 0.2 * torch.tanh(self.ih(x) + self.hh(h))
        h = h + self.sigma * torch.randn_like(h) if self.sigma else h
        return h, torch.ones_like(count)


class Counting(Leaky):
    """Its states all get gradients, so that layers of it form a stack."""

    def forward(self, x, h, count):
        h, one = super().forward(x, h, count)
        return h, count + one * h


@pytest.fixture
def installed(monkeypatch, tmp_path):
    monkeypatch.setenv("RNNJIT_CACHE_DIR", str(tmp_path))
    clock = FakeClock(monkeypatch)
    timed = Timed(clock, "slow", 3, 0.02), Timed(clock, "quick", 1, 0.001)
    found = {**{each.name: each for each in timed}, "eager": EAGER}
    monkeypatch.setattr("rnnjit.dispatch.registry._installed", lambda: found)
    return timed


def ran(installed, module, *inputs, **named):
    """The names of the backends that run a call."""
    before = [backend.calls for backend in installed]
    module(*inputs, **named)
    return [b.name for b, calls in zip(installed, before, strict=True) if b.calls > calls]


def mask():
    reset = torch.zeros(5, 3, dtype=torch.bool)
    reset[2] = True
    return reset


X = torch.randn(5, 3, 2)
MODULES = {
    "a stack": (lambda: rnnjit.Recurrent(Counting(2, 4), num_layers=2), {}),
    "a layer with draws": (lambda: rnnjit.Recurrent(Leaky(2, 4, 0.1)), {}),
    "resets": (lambda: rnnjit.Recurrent(Leaky(2, 4), bidirectional=True), {"reset": mask()}),
}


@pytest.mark.parametrize(("make", "named"), MODULES.values(), ids=MODULES)
def test_auto_takes_the_fastest_from_then_on(installed, make, named):
    module = rnnjit.compile(make())
    assert ran(installed, module, X, **named) == ["slow"]
    (call,) = rnnjit.tune(module, X, rounds=5, **named).calls
    assert list(call.seconds) == ["quick", "slow"]
    assert (call.chosen, call.stored) == ("quick", True)
    assert ran(installed, module, X, **named) == ["quick"]
    with torch.no_grad():
        assert ran(installed, module, X, **named) == ["slow"]
    report = rnnjit.explain(module, X, **named).calls[0]
    assert (report.chosen, list(report.seconds)) == ("quick", ["quick", "slow"])


def test_layers_that_are_chosen_one_by_one_are_not_measured(installed):
    model = nn.Sequential()
    model.cells = rnnjit.Recurrent(Leaky(2, 4, 0.1), num_layers=2)
    (call,) = rnnjit.tune(model, X, rounds=5).calls
    assert not call.seconds
    assert str(call).startswith("cells: not measured: its 2 layers are computed one by one")

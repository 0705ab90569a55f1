"""Protects the tools' view of calls with resets: the packed batch of the segments between them."""

import pytest
import torch
from torch import nn

import rnnjit

X = torch.randn(5, 2, 3)
# The first sequence is cut into parts of 2 and 3 steps, the second into parts of 4 and 1.
RESET = torch.zeros(5, 2, dtype=torch.bool)
RESET[2, 0] = RESET[4, 1] = True
CUT = {"T": 4, "B": 4, "N": 10, "packed": True}
WHOLE = {"T": 5, "B": 2, "N": 10, "packed": False}


def facts(problem):
    return {name: getattr(problem, name) for name in CUT}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RNNJIT_CACHE_DIR", str(tmp_path / "cache"))


@pytest.mark.parametrize("make", [nn.RNN, nn.LSTM, nn.GRU])
def test_explain(make):
    fast = rnnjit.compile(make(3, 4))
    for reset, expected in ((RESET, CUT), (RESET & False, WHOLE), (None, WHOLE)):
        (call,) = rnnjit.explain(fast, X, reset=reset).calls
        assert facts(call.problem) == expected
        assert call.chosen == "numba"
    (call,) = rnnjit.explain(fast, X, None, RESET, return_states=True).calls
    assert facts(call.problem) == CUT


def test_inside_a_model():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = rnnjit.compile(nn.GRU(3, 4, 2, bidirectional=True))

        def forward(self, x, mask):
            return self.rnn(x + 1, reset=mask)[0]

    (call,) = rnnjit.explain(Model(), x=X, mask=RESET).calls
    assert (call.name, facts(call.problem)) == ("rnn", CUT)


@pytest.mark.full
def test_tune_and_compare_measure_it():
    fast = rnnjit.compile(nn.LSTM(3, 4))
    (tuned,) = rnnjit.tune(fast, X, reset=RESET, rounds=1, backends=["numba"]).calls
    assert facts(tuned.problem) == CUT
    assert {"numba"} <= tuned.seconds.keys()
    (compared,) = rnnjit.compare(fast, X, reset=RESET, rounds=1, backends=["numba"]).calls.values()
    assert facts(compared.problem) == CUT
    assert compared.results[0].values_error < 1e-5


def test_what_makes_no_sense_raises_what_the_call_raises():
    fast = rnnjit.compile(nn.GRU(3, 4))
    for tool in (rnnjit.explain, rnnjit.tune, rnnjit.compare):
        with pytest.raises(ValueError, match="reset must have the shape of input"):
            tool(fast, X, reset=RESET[1:])

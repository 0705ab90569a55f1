"""Protects the tools' view of calls with resets: the packed batch of the segments between them."""

import pytest
import torch
from torch import nn

import rnnjit
from rnnjit.cells import PeepholeLSTM as Peephole
from rnnjit.reference import ReferenceBackend

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
        assert ("packed batch" in call.note) == (expected is CUT)
    (call,) = rnnjit.explain(fast, X, None, RESET, return_states=True).calls
    assert facts(call.problem) == CUT


class Resetting(ReferenceBackend):
    """Its kernels reset the states."""

    name = "resetting"
    resets_in_kernel = True

    def records_states(self, layer, problem):
        return True


@pytest.mark.parametrize(
    "make", [nn.LSTM, lambda *sizes: rnnjit.Recurrent(Peephole(*sizes[:2]), 2)]
)
def test_explain_where_kernels_reset_the_states(make):
    start = torch.randn(2, 4), torch.randn(2, 4)
    fast = rnnjit.compile(make(3, 4, 2), backend=Resetting())
    calls = rnnjit.explain(fast, X, None, RESET, start).calls
    assert [call.name for call in calls] == ["module, layer 0", "module, layer 1"]
    for call in calls:
        assert facts(call.problem) == WHOLE
        assert "in its kernels" in call.note
        assert (call.chosen, call.verdicts[0].reasons) == ("resetting", ())
    fast = rnnjit.compile(nn.LSTM(3, 4, proj_size=2), backend=Resetting())
    (call,) = rnnjit.explain(fast, X, None, RESET).calls
    assert facts(call.problem) == CUT
    assert "packed batch" in call.note


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

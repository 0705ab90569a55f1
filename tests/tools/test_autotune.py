"""Protects autotuning: what it measures, remembers, and chooses from then on."""

import subprocess
import sys
import time

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence

import rnnjit
from rnnjit.dispatch import tuning_db
from rnnjit.reference import ReferenceBackend
from rnnjit.runtime import object_cache


class Sleepy(ReferenceBackend):
    """The reference, as slow as a test wants it; counts its calls."""

    def __init__(self, name, priority, seconds, error=None):
        self.name, self.priority, self.seconds, self.error = name, priority, seconds, error
        self.calls, self.reasons = 0, []

    def why_not(self, spec, problem):
        return self.reasons

    def forward(self, *args):
        self.calls += 1
        if self.error:
            raise self.error
        time.sleep(self.seconds)
        return super().forward(*args)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RNNJIT_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture
def installed(monkeypatch):
    """Three backends: by priority the slow one comes first; one fails."""
    found = {
        "slow": Sleepy("slow", 3, 0.02),
        "broken": Sleepy("broken", 2, 0, RuntimeError("no toolchain")),
        "quick": Sleepy("quick", 1, 0),
    }
    monkeypatch.setattr("rnnjit.dispatch.registry._installed", lambda: found)
    return found


def ran(backends, module, *inputs):
    """The name of the backend that runs a call."""
    before = {name: backend.calls for name, backend in backends.items()}
    module(*inputs)
    (name,) = (name for name, backend in backends.items() if backend.calls > before[name])
    return name


X = torch.zeros(5, 3, 2)
SPEC = rnnjit.RNNSpec(2, 4)
PROBLEM = rnnjit.Problem(torch.float32, "cpu", 5, 3, 15, False, True)


def test_auto_takes_the_fastest_from_then_on(installed):
    module, other = (rnnjit.compile(nn.RNN(2, 4)) for _ in range(2))
    assert ran(installed, module, X) == ran(installed, other, X) == "slow"
    (call,) = rnnjit.tune(module, X, rounds=1).calls
    assert list(call.seconds) == ["quick", "slow"]
    assert call.seconds["slow"] > 0.02
    assert call.seconds["slow"] > call.seconds["quick"] > 0
    assert call.failures == {"broken": "RuntimeError: no toolchain"}
    assert ran(installed, module, X) == ran(installed, other, X) == "quick"
    assert ran(installed, rnnjit.compile(nn.RNN(2, 4)), X) == "quick"


def test_what_was_not_measured_is_chosen_by_priority(installed):
    module = rnnjit.compile(nn.RNN(2, 4))
    rnnjit.tune(module, X, rounds=1)
    assert ran(installed, module, torch.zeros(8, 4, 2)) == "quick"  # the next powers of two
    assert ran(installed, module, torch.zeros(9, 3, 2)) == "slow"
    assert ran(installed, module, torch.zeros(5, 5, 2)) == "slow"
    with torch.no_grad():
        assert ran(installed, module, X) == "slow"
    assert ran(installed, rnnjit.compile(nn.RNN(2, 5)), X) == "slow"
    assert ran(installed, rnnjit.compile(nn.RNN(2, 4).double()), X.double()) == "slow"


def test_threads_are_part_of_what_was_measured(installed):
    module = rnnjit.compile(nn.RNN(2, 4))
    rnnjit.tune(module, X, rounds=1)
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        assert ran(installed, rnnjit.compile(nn.RNN(2, 4)), X) == "slow"
    finally:
        torch.set_num_threads(before)


def test_a_measured_backend_that_declines_is_passed_over(installed):
    module = rnnjit.compile(nn.RNN(2, 4))
    rnnjit.tune(module, X, rounds=1)
    installed["quick"].reasons = ["not today"]
    assert ran(installed, rnnjit.compile(nn.RNN(2, 4)), X) == "slow"


def test_a_named_backend_is_never_replaced(installed):
    module = rnnjit.compile(nn.RNN(2, 4), backend="slow")
    rnnjit.tune(module, X, rounds=1)
    assert ran(installed, module, X) == "slow"


def test_explain_shows_the_times(installed):
    module = rnnjit.compile(nn.RNN(2, 4))
    assert "measured" not in str(rnnjit.explain(module, X))
    rnnjit.tune(module, X, rounds=1)
    report = rnnjit.explain(module, X)
    assert report.calls[0].chosen == "quick"
    lines = str(report).splitlines()
    assert "quick: runs it (measured: " in lines[2]
    assert "slow: could run it (measured: " in lines[3]
    assert "broken: could run it" in lines[4]
    assert "measured" not in lines[4]


def test_a_traced_graph_follows(installed):
    module = rnnjit.compile(nn.RNN(2, 4))
    traced = torch.compile(module, backend="eager", fullgraph=True)
    assert ran(installed, traced, X) == "slow"
    rnnjit.tune(module, X, rounds=1)
    assert ran(installed, traced, X) == "quick"


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.unused = nn.RNN(2, 4), nn.RNN(4, 4), nn.RNN(2, 2)

    def forward(self, x):
        with torch.no_grad():
            y, _ = self.first(x)
        return self.second(y)


def test_every_call_in_a_model_is_timed_as_it_is_made(installed):
    tuning = rnnjit.tune(rnnjit.compile(Model()), X, rounds=1)
    found = {call.name: call.problem.needs_grad for call in tuning.calls}
    assert found == {"first": False, "second": True}
    assert str(tuning).splitlines()[0].startswith("first: quick ")


@pytest.mark.parametrize("packed", [False, True])
def test_real_backends_on_real_calls(packed):
    module = rnnjit.compile(nn.RNN(2, 4, num_layers=2, dropout=0.5, bidirectional=True))
    x = pack_sequence([torch.randn(4, 2), torch.randn(2, 2)]) if packed else X
    (call,) = rnnjit.tune(module, x, torch.zeros(4, 2 if packed else 3, 4), rounds=1).calls
    assert {"numba", "eager"} <= call.seconds.keys()
    assert call.failures == {}
    assert rnnjit.explain(module, x).calls[0].chosen == next(iter(call.seconds))


def test_nothing_of_the_module_changes():
    module = rnnjit.compile(nn.RNN(2, 4, num_layers=2, dropout=0.5))
    state, weights = torch.get_rng_state(), [p.clone() for p in module.parameters()]
    rnnjit.tune(module, X, rounds=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(p, w) for p, w in zip(module.parameters(), weights, strict=True))
    assert all(p.grad is None for p in module.parameters())
    assert module.training
    assert not module._forward_pre_hooks


def test_torch_s_own_operators_leave_nothing_to_choose():
    module = rnnjit.compile(nn.RNN(2, 4))
    with torch.autocast("cpu"):
        (call,) = rnnjit.tune(module, X, rounds=1).calls
    assert call.seconds == {}
    assert "autocast" in str(call)


def test_another_process_remembers():
    tuning_db.keep(SPEC, PROBLEM, {"eager": 1e-6, "numba": 1e-3})
    code = (
        "import torch, rnnjit\n"
        "module = rnnjit.compile(torch.nn.RNN(2, 4))\n"
        f"torch.set_num_threads({torch.get_num_threads()})\n"
        "print(rnnjit.explain(module, torch.zeros(5, 3, 2)).calls[0].chosen)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout == "eager\n"


def test_what_does_not_hold_here_is_not_believed(monkeypatch):
    tuning_db.keep(SPEC, PROBLEM, {"eager": 1e-6})
    assert tuning_db.fetch(SPEC, PROBLEM) == {"eager": 1e-6}
    (file,) = object_cache.directory().iterdir()
    content = file.read_bytes()
    for damaged in (b"", content[:-1], content + b" "):
        file.write_bytes(damaged)
        assert tuning_db.fetch(SPEC, PROBLEM) == {}
    for data in (b"[]", b'{"what": "else", "seconds": {"eager": 1}}', b'{"seconds": 1}'):
        object_cache.keep(file.stem, data, file.suffix[1:])
        assert tuning_db.fetch(SPEC, PROBLEM) == {}
    file.write_bytes(content)
    assert tuning_db.fetch(SPEC, PROBLEM) == {"eager": 1e-6}
    monkeypatch.setattr(tuning_db, "host", lambda: "another machine")
    assert tuning_db.fetch(SPEC, PROBLEM) == {}


def test_a_directory_that_cannot_be_written_is_a_warning(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RNNJIT_CACHE_DIR", str(tmp_path / "file" / "cache"))
    with pytest.warns(UserWarning, match="cannot be cached"):
        (call,) = rnnjit.tune(nn.RNN(2, 4), X, rounds=1).calls
    assert call.seconds


def test_what_cannot_be_tuned():
    with pytest.raises(TypeError, match=r"module must be a torch\.nn\.Module, got int"):
        rnnjit.tune(3)
    with pytest.raises(ValueError, match="calls no nn"):
        rnnjit.tune(nn.Linear(2, 3), torch.zeros(1, 2))
    with pytest.raises(ValueError, match="rounds must be at least 1, got 0"):
        rnnjit.tune(nn.RNN(2, 3), X, rounds=0)
    with pytest.raises(RuntimeError, match="input"):
        rnnjit.tune(rnnjit.compile(nn.RNN(2, 3)), torch.zeros(5, 3, 9))

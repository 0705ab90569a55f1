"""Protects autotuning: what it measures, remembers, and chooses from then on."""

import io
import logging
import signal
import subprocess
import sys
from itertools import chain, cycle, repeat

import pytest
import torch
from fake_clock import FakeClock, Timed
from torch import nn
from torch.nn.utils.rnn import pack_sequence

import rnnjit
from rnnjit.dispatch import tuning_db
from rnnjit.runtime import object_cache


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RNNJIT_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture
def clock(monkeypatch):
    return FakeClock(monkeypatch)


@pytest.fixture
def install(monkeypatch):
    """Only the backends that a test names are installed, in this order."""

    def only(*backends):
        found = {backend.name: backend for backend in backends}
        monkeypatch.setattr("rnnjit.dispatch.registry._installed", lambda: found)
        return found

    return only


@pytest.fixture
def installed(clock, install):
    """Three backends: by priority the slow one comes first; one fails."""
    return install(
        Timed(clock, "slow", 3, 0.02),
        Timed(clock, "broken", 2, 0.001, error=RuntimeError("no toolchain")),
        Timed(clock, "quick", 1, 0.001),
    )


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
    (call,) = rnnjit.tune(module, X, rounds=5).calls
    assert list(call.seconds) == ["quick", "slow"]
    assert call.seconds == pytest.approx({"quick": 0.001, "slow": 0.02})
    assert call.failures == {"broken": "RuntimeError: no toolchain"}
    assert (call.chosen, call.stored, call.why) == ("quick", True, "quick is faster than slow")
    assert ran(installed, module, X) == ran(installed, other, X) == "quick"
    assert ran(installed, rnnjit.compile(nn.RNN(2, 4)), X) == "quick"


def test_what_was_not_measured_is_chosen_by_priority(installed):
    module = rnnjit.compile(nn.RNN(2, 4))
    rnnjit.tune(module, X, rounds=5)
    assert ran(installed, module, torch.zeros(8, 4, 2)) == "quick"  # the next powers of two
    assert ran(installed, module, torch.zeros(9, 3, 2)) == "slow"
    assert ran(installed, module, torch.zeros(5, 5, 2)) == "slow"
    with torch.no_grad():
        assert ran(installed, module, X) == "slow"
    assert ran(installed, rnnjit.compile(nn.RNN(2, 5)), X) == "slow"
    assert ran(installed, rnnjit.compile(nn.RNN(2, 4).double()), X.double()) == "slow"


def test_threads_are_part_of_what_was_measured(installed):
    module = rnnjit.compile(nn.RNN(2, 4))
    rnnjit.tune(module, X, rounds=5)
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        assert ran(installed, rnnjit.compile(nn.RNN(2, 4)), X) == "slow"
    finally:
        torch.set_num_threads(before)


def test_a_measured_backend_that_declines_is_passed_over(installed):
    module = rnnjit.compile(nn.RNN(2, 4))
    rnnjit.tune(module, X, rounds=5)
    installed["quick"].reasons = ["not today"]
    assert ran(installed, rnnjit.compile(nn.RNN(2, 4)), X) == "slow"


def test_a_named_backend_is_never_replaced(installed):
    module = rnnjit.compile(nn.RNN(2, 4), backend="slow")
    rnnjit.tune(module, X, rounds=5)
    assert ran(installed, module, X) == "slow"


def test_explain_shows_the_times(installed):
    module = rnnjit.compile(nn.RNN(2, 4))
    assert "measured" not in str(rnnjit.explain(module, X))
    rnnjit.tune(module, X, rounds=5)
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
    rnnjit.tune(module, X, rounds=5)
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
    tuning = rnnjit.tune(rnnjit.compile(Model()), X, rounds=5)
    found = {call.name: call.problem.needs_grad for call in tuning.calls}
    assert found == {"first": False, "second": True}
    assert str(tuning).splitlines()[0].startswith("first: quick ")


STATE = torch.zeros(3, 4)


@pytest.mark.parametrize(
    ("module", "inputs"),
    [
        (nn.LSTM(2, 4, 2), (X,)),
        (nn.GRU(2, 4), (X, STATE[None])),
        (nn.LSTMCell(2, 4), (X[0], (STATE, STATE))),
        (nn.GRUCell(2, 4), (X[0],)),
    ],
    ids=lambda value: str(value)[:8],
)
def test_other_layers_and_cells_are_tuned_each_for_itself(installed, module, inputs):
    (call,) = rnnjit.tune(module, *inputs, rounds=5).calls
    assert list(call.seconds) == ["quick", "slow"]
    assert (call.chosen, call.stored) == ("quick", True)
    assert ran(installed, rnnjit.compile(module), *inputs) == "quick"
    assert ran(installed, rnnjit.compile(nn.RNN(2, 4)), X) == "slow"


def test_layers_with_hooks_before_loading_are_tuned(installed):
    module = nn.RNN(2, 4)
    module.register_load_state_dict_pre_hook(lambda *arguments: None)  # as int8 modules have
    (call,) = rnnjit.tune(module, X, rounds=5).calls
    assert (call.chosen, call.stored) == ("quick", True)
    assert len(module._load_state_dict_pre_hooks) == 1


@pytest.mark.parametrize("packed", [False, True])
def test_real_backends_on_real_calls(packed):
    module = rnnjit.compile(nn.RNN(2, 4, num_layers=2, dropout=0.5, bidirectional=True))
    x = pack_sequence([torch.randn(4, 2), torch.randn(2, 2)]) if packed else X
    (call,) = rnnjit.tune(module, x, torch.zeros(4, 2 if packed else 3, 4), rounds=1).calls
    assert {"numba", "eager"} <= call.seconds.keys()
    assert call.failures == {}
    assert rnnjit.explain(module, x).calls[0].chosen == call.chosen
    assert "nothing is stored: 1 rounds do not show how much times vary" in str(call)


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


def test_a_directory_that_cannot_be_written_is_a_warning(tmp_path, monkeypatch, installed):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RNNJIT_CACHE_DIR", str(tmp_path / "file" / "cache"))
    with pytest.warns(UserWarning, match="cannot be cached"):
        (call,) = rnnjit.tune(nn.RNN(2, 4), X).calls
    assert list(call.seconds) == ["quick", "slow"]
    assert (call.chosen, call.stored) == ("slow", False)
    assert "nothing is stored: the cache directory cannot be used" in str(call)


def test_what_cannot_be_tuned():
    with pytest.raises(TypeError, match=r"module must be a torch\.nn\.Module, got int"):
        rnnjit.tune(3)
    with pytest.raises(ValueError, match="calls no nn"):
        rnnjit.tune(nn.Linear(2, 3), torch.zeros(1, 2))
    with pytest.raises(ValueError, match="rounds must be at least 1, got 0"):
        rnnjit.tune(nn.RNN(2, 3), X, rounds=0)
    with pytest.raises(TypeError, match=r"backends must be a list of names .* got 'numba'"):
        rnnjit.tune(nn.RNN(2, 3), X, backends="numba")
    with pytest.raises(TypeError, match="backends must hold names of backends, got int"):
        rnnjit.tune(nn.RNN(2, 3), X, backends=[3])
    with pytest.raises(ValueError, match=r"'nubma' is not installed.*did you mean 'numba'"):
        rnnjit.tune(nn.RNN(2, 3), X, backends=["nubma"])
    with pytest.raises(ValueError, match="'auto' in backends is no backend but a choice"):
        rnnjit.tune(nn.RNN(2, 3), X, backends=["auto"])
    with pytest.raises(ValueError, match="backends must name a backend at least"):
        rnnjit.tune(nn.RNN(2, 3), X, backends=[])
    with pytest.raises(RuntimeError, match="input"):
        rnnjit.tune(rnnjit.compile(nn.RNN(2, 3)), torch.zeros(5, 3, 9))


# what noise does


def beside_two_processes(times):
    """What two busy processes add to a call of a team of threads: mostly some time slices."""
    return cycle([(0.004 * n, 2 * n) for n in times])


def test_noise_is_not_stored(clock, install):
    team = Timed(clock, "team", 2, 6e-5, noise=beside_two_processes((1, 3, 0, 2, 4, 2, 3)))
    found = install(team, Timed(clock, "alone", 1, 1.1e-3))
    module = rnnjit.compile(nn.RNN(2, 4))
    (call,) = rnnjit.tune(module, X).calls
    assert (call.chosen, call.stored) == ("team", False)
    assert "nothing is stored: times of team vary" in str(call)
    assert tuning_db.fetch(SPEC, PROBLEM) == {}
    assert ran(found, module, X) == "team"


def test_noise_leaves_what_a_quiet_machine_told(clock, installed):
    module = rnnjit.compile(nn.RNN(2, 4))
    rnnjit.tune(module, X)
    before = tuning_db.fetch(SPEC, PROBLEM)
    installed["slow"].noise = beside_two_processes((1, 3, 0, 2, 4, 2, 3))
    (call,) = rnnjit.tune(module, X).calls
    assert (call.chosen, call.stored) == ("quick", False)
    assert tuning_db.fetch(SPEC, PROBLEM) == before
    assert ran(installed, module, X) == "quick"


def test_a_gain_that_a_second_measurement_does_not_find_is_not_stored(clock, install):
    # Slow for as long as the first measurement takes, with no sign of a neighbour.
    first = 1 + 2 + 2 * 15
    noise = chain(repeat((0.02, 0), first), repeat((0.0, 0)))
    install(Timed(clock, "first", 2, 0.002, noise=noise), Timed(clock, "second", 1, 0.01))
    (call,) = rnnjit.tune(rnnjit.compile(nn.RNN(2, 4)), X).calls
    assert (call.chosen, call.stored) == ("first", False)
    assert call.why.startswith("second is faster than first, but in a second measurement")


def test_the_default_stays_where_another_is_hardly_faster(clock, install):
    found = install(Timed(clock, "first", 2, 0.0105), Timed(clock, "second", 1, 0.01))
    module = rnnjit.compile(nn.RNN(2, 4))
    (call,) = rnnjit.tune(module, X).calls
    assert (call.chosen, call.stored) == ("first", True)
    assert list(call.seconds) == ["second", "first"]
    assert ran(found, module, X) == "first"
    report = rnnjit.explain(module, X)
    assert report.calls[0].chosen == "first"
    lines = str(report).splitlines()
    assert lines[2] == "  first: runs it (measured: 10.5 ms)"
    assert lines[3] == "  second: could run it (measured: 10 ms, too close to be preferred)"


def test_a_choice_that_no_longer_holds_is_replaced(clock, installed):
    module = rnnjit.compile(nn.RNN(2, 4))
    rnnjit.tune(module, X)
    assert ran(installed, module, X) == "quick"
    installed["slow"].seconds = 0.0005
    (call,) = rnnjit.tune(module, X).calls
    assert (call.chosen, call.why) == ("slow", "no other is clearly faster than slow")
    assert ran(installed, module, X) == "slow"


def test_a_time_limit_is_no_failure_of_a_backend(clock, install, monkeypatch):
    def over(*_):
        raise TimeoutError("too long")

    class Interrupted(Timed):
        def forward(self, *args):
            signal.raise_signal(signal.SIGALRM)
            return super().forward(*args)

    install(Interrupted(clock, "first", 2, 0.01), Timed(clock, "second", 1, 0.02))
    before = signal.signal(signal.SIGALRM, over)
    try:
        for measure in (rnnjit.tune, rnnjit.compare):
            with pytest.raises(TimeoutError, match="too long"):
                measure(nn.RNN(2, 4), X)
    finally:
        signal.signal(signal.SIGALRM, before)


# what takes part, in which order, and what is said meanwhile


@pytest.fixture
def patient(clock, install):
    """The default, a backend that says that it compiles for long, and a quick one."""
    return install(
        Timed(clock, "first", 3, 0.02),
        Timed(clock, "patient", 2, 0.01, compiles=90.0),
        Timed(clock, "third", 1, 0.001),
    )


def test_what_is_left_out_is_never_called(patient):
    (call,) = rnnjit.tune(nn.RNN(2, 4), X, backends=["third"]).calls
    assert patient["patient"].calls == 0
    # What `auto` takes by itself is measured in any case, to compare with.
    assert list(call.seconds) == ["third", "first"]
    assert call.chosen == "third"


def test_if_the_default_fails_the_next_is_what_others_are_compared_with(clock, install):
    broken = Timed(clock, "broken", 3, 0.001, error=RuntimeError("no toolchain"))
    install(broken, Timed(clock, "next", 2, 0.001), Timed(clock, "slow", 1, 0.02))
    (call,) = rnnjit.tune(nn.RNN(2, 4), X, backends=["slow"]).calls
    assert list(call.seconds) == ["next", "slow"]
    assert call.chosen == "next"


def test_what_compiles_for_long_comes_last_and_what_came_before_is_kept(patient):
    patient["patient"].error = KeyboardInterrupt()
    module = rnnjit.compile(nn.RNN(2, 4))
    with pytest.raises(KeyboardInterrupt):
        rnnjit.tune(module, X)
    assert list(tuning_db.fetch(SPEC, PROBLEM)) == ["third", "first"]
    assert ran(patient, module, X) == "third"


def test_a_backend_that_cannot_tell_how_long_it_compiles_is_taken_at_once(patient, capsys):
    patient["patient"].compiles = "long"
    assert "patient" in rnnjit.tune(nn.RNN(2, 4), X).calls[0].seconds
    assert capsys.readouterr().err == ""


def test_what_was_stored_stays_if_noise_comes_later(clock, patient):
    quiet = 1 + 2 + 2 * 15 + 2 + 2 * 15  # what is called before the long compilation
    later = beside_two_processes((1, 3, 0, 2, 4, 2, 3))
    patient["first"].noise = chain(repeat((0.0, 0), quiet), later)
    (call,) = rnnjit.tune(nn.RNN(2, 4), X).calls
    assert (call.chosen, call.stored) == ("third", True)
    assert call.why.startswith("third is faster than first; after that: times of first vary")
    assert list(tuning_db.fetch(SPEC, PROBLEM)) == ["third", "first"]


def test_a_default_that_compiles_for_long_is_waited_for(clock, install):
    first = Timed(clock, "first", 2, 0.001, compiles=90.0)
    install(first, Timed(clock, "second", 1, 0.02))
    first.error = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        rnnjit.tune(nn.RNN(2, 4), X)
    assert tuning_db.fetch(SPEC, PROBLEM) == {}
    first.error = None
    (call,) = rnnjit.tune(nn.RNN(2, 4), X).calls
    assert (call.chosen, call.stored) == ("first", True)


LINE = "rnnjit.tune: patient may compile for 2 min or longer; backends= chooses what takes part"


def test_a_line_precedes_a_long_compilation_and_nothing_else_is_said(patient, capsys):
    rnnjit.tune(Model(), X)
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", LINE + "\n")
    rnnjit.tune(Model(), X, backends=["third"])
    assert capsys.readouterr().err == ""


def test_a_log_gets_the_lines_and_stderr_does_not(patient, capsys, caplog):
    with caplog.at_level(logging.INFO, "rnnjit"):
        rnnjit.tune(nn.RNN(2, 4), X)
    first, line, last = [record.getMessage() for record in caplog.records]
    assert first.startswith("rnnjit.tune: module: third 1 ms, first 20 ms; auto takes third")
    assert line == LINE
    assert last.startswith("rnnjit.tune: module: third 1 ms, patient 10 ms, first 20 ms")
    assert capsys.readouterr().err == ""


def test_a_logger_above_info_silences_it(patient, capsys, caplog):
    with caplog.at_level(logging.WARNING, "rnnjit"):
        rnnjit.tune(nn.RNN(2, 4), X)
    assert caplog.records == []
    assert capsys.readouterr().err == ""


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_on_a_terminal_results_are_seen_before_the_long_wait(patient, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    seen = []
    forward = patient["patient"].forward

    def look(*args):
        seen.append(terminal.getvalue())
        return forward(*args)

    monkeypatch.setattr(patient["patient"], "forward", look)
    rnnjit.tune(nn.RNN(2, 4), X)
    assert "rnnjit.tune: module: third 1 ms, first 20 ms; auto takes third" in seen[0]
    assert LINE in seen[0]


def test_a_process_without_stderr(patient, monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    assert rnnjit.tune(nn.RNN(2, 4), X).calls[0].stored

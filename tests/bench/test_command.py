"""Protects `rnnjit bench`: its output, its files, its refusals and its exit status."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest
from bench_contestants import NOTES
from bench_report import CASE, OTHER
from bench_report import report_of as report
from msgspec.structs import replace

from rnnjit.bench import records
from rnnjit.bench.plan import Plan
from rnnjit.bench.presets import PRESETS, Preset
from rnnjit.bench.records import Case, ContestantInfo, Machine, Report
from rnnjit.cli import build_parser, main
from rnnjit.cli.bench import conclude
from rnnjit.cli.parser import UsageError
from rnnjit.dispatch import registry

FORWARD, TRAINING = Case(T=5, B=2, I=3, H=4), Case(T=5, B=2, I=3, H=4, mode="training")
QUICK = PRESETS["quick"]
TINY = Preset(
    "a test's", lambda threads: (FORWARD, TRAINING), Plan(rounds=2, sample=1e-3, memory=False)
)


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    """The preset is small, and the machine is not measured."""
    monkeypatch.setitem(PRESETS, "quick", TINY)
    machine = Machine(cpu="a cpu", system="a system", cpus=2, isa="an isa")
    monkeypatch.setattr("rnnjit.bench.machine.measure_machine", lambda threads, quick: machine)


def bench(*arguments):
    return main(["bench", "--preset", "quick", *arguments])


@pytest.mark.full
def test_tables_and_files_say_the_same(tmp_path, capsys):
    paths = {kind: tmp_path / f"report.{kind}" for kind in ("json", "csv", "html")}
    outputs = [part for kind, path in paths.items() for part in (f"--{kind}", str(path))]
    contestants = "onnxruntime,bench_contestants:WrongGradient,bench_contestants:Absent"
    assert bench("--contestants", contestants, *outputs) == 0
    captured = capsys.readouterr()
    found = records.read(paths["json"])
    assert found.complete
    assert found.preset == "quick"
    assert found.command == f"rnnjit bench --preset quick --contestants {contestants}"
    verdicts = {(m.contestant, m.case.mode): m.verdict for m in found.measurements}
    assert verdicts == {
        ("eager", "forward"): "right",
        ("eager", "training"): "right",
        ("onnxruntime", "forward"): "right",
        ("onnxruntime", "training"): "declined",
        ("wrong gradient", "forward"): "right",
        ("wrong gradient", "training"): "wrong",
    }
    assert "wrong gradient is wrong in 5, 2, 3, 4; training" in captured.out
    assert "the gradient of weight_hh_l0 is off by" in captured.out
    assert "onnxruntime declines 5, 2, 3, 4; training" in captured.out
    assert "absent one is absent: asked whether it is installed, it raised OSError" in captured.out
    assert "2 cases, 3 contestants, about" in captured.err
    with paths["csv"].open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6
    assert "</html>" in paths["html"].read_text()


def test_json_to_standard_output_is_all_there_is_and_tells_where_it_comes_from(capsys):
    import torch

    contestants = "eager,bench_contestants:Plain"
    assert bench("--contestants", contestants, "--rounds", "1", "--json", "-") == 0
    found = msgspec.json.decode(capsys.readouterr().out, type=Report)
    words = "rnnjit bench --preset quick --contestants eager,bench_contestants:Plain --rounds 1"
    assert found.command == words
    assert [m.samples for m in found.measurements] == [1] * 4
    assert found.versions["torch"] == torch.__version__
    assert found.machine.cpu == "a cpu"
    here = Path(__file__).parent
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=here)
    assert found.commit.removesuffix("+") == head.stdout.strip()


def test_cells_that_are_named_are_measured_and_summed_up(capsys, tmp_path):
    file = tmp_path / "report.json"
    contestants = "eager,bench_contestants:Plain"
    arguments = ("--cell", "gru,lstm", "--contestants", contestants, "--rounds", "1")
    assert bench(*arguments, "--json", str(file)) == 0
    found = records.read(file)
    words = "rnnjit bench --preset quick --cell lstm,gru --contestants "
    assert found.command == f"{words}{contestants} --rounds 1"
    eager = [m for m in found.measurements if m.contestant == "eager"]
    assert [(m.case.cell, m.case.mode, m.verdict) for m in eager] == [
        (cell, mode, "right") for cell in ("lstm", "gru") for mode in ("forward", "training")
    ]
    printed = capsys.readouterr().out
    assert "LSTM, forward, float32" in printed
    assert "GRU, training, float32" in printed
    assert "and where" in printed


def test_in_float16_cases_that_train_are_left_out(capsys, tmp_path):
    file = tmp_path / "report.json"
    assert bench("--dtype", "float16", "--contestants", "eager", "--json", str(file)) == 0
    found = records.read(file)
    assert found.command == "rnnjit bench --preset quick --contestants eager --dtype float16"
    (measured,) = found.measurements
    assert (measured.case, measured.verdict) == (replace(FORWARD, dtype="float16"), "right")
    assert "float16 is for inference: cases that train are left out (1)" in capsys.readouterr().err


def test_int8_names_its_baseline_and_refuses_what_is_wrong(capsys, tmp_path):
    paths = {kind: tmp_path / f"report.{kind}" for kind in ("json", "csv")}
    outputs = [part for kind, path in paths.items() for part in (f"--{kind}", str(path))]
    contestants = "torch-int8,bench_contestants:Plain,bench_contestants:Reversed"
    assert bench("--dtype", "int8", "--contestants", contestants, *outputs) == 0
    found = records.read(paths["json"])
    assert [c.name for c in found.contestants if c.kind == "baseline"] == ["eager-float32"]
    verdicts = {m.contestant: (m.case.dtype, m.verdict) for m in found.measurements}
    assert verdicts == {
        "eager-float32": ("int8", "right"),
        "torch-int8": ("int8", "declined"),
        "plain": ("int8", "right"),
        "reversed": ("int8", "wrong"),
    }
    with paths["csv"].open() as file:
        rows = {row["contestant"]: row for row in csv.DictReader(file)}
    assert {row["dtype"] for row in rows.values()} == {"int8"}
    assert float(rows["eager-float32"]["ratio"]) == 1.0
    printed = " ".join(capsys.readouterr().out.split())
    assert "forward, int8" in printed
    assert "Times as fast as eager-float32 (PyTorch, float32)" in printed
    assert "torch-int8 declines 5, 2, 3, 4; forward, int8" in printed
    assert "reversed is wrong in 5, 2, 3, 4; forward, int8" in printed


@pytest.mark.full
def test_a_backend_that_is_wrong_is_exit_status_1(installed_backend, capsys):
    assert bench("--contestants", "broken", "--rounds", "1") == 1
    assert capsys.readouterr().out.count("broken is wrong in 5, 2, 3, 4;") == 2


@pytest.fixture
def installed_backend(tmp_path, monkeypatch):
    """Installs a backend `broken`, as a package with an entry point, for all processes."""
    (tmp_path / "broken.py").write_text(
        "from rnnjit.testing import RecomputeBackend\n"
        "class Broken(RecomputeBackend):\n"
        "    name = 'broken'\n"
        "    def forward(self, *arguments):\n"
        "        found = super().forward(*arguments)\n"
        "        found.y.mul_(1.001)\n"
        "        return found\n"
        "BACKEND = Broken()\n"
    )
    info = tmp_path / "broken-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[rnnjit.backends]\nbroken = broken:BACKEND\n")
    monkeypatch.syspath_prepend(tmp_path)
    found = registry._installed.__wrapped__()
    monkeypatch.setattr(registry, "_installed", lambda: found)


@pytest.mark.full
def test_against_faster_times_it_fails_if_it_is_told_to(tmp_path, capsys):
    old = report({"eager": {FORWARD: 1.0, TRAINING: 1.0}, "numba": {FORWARD: 1e-9, TRAINING: 1e9}})
    (tmp_path / "old.json").write_bytes(records.encode(old))
    arguments = ("--against", str(tmp_path / "old.json"), "--fail-slower", "1.15")
    assert bench("--contestants", "numba", *arguments) == 1
    printed = capsys.readouterr().out
    assert printed.count("SLOWER") == 1
    assert "SLOWER numba, 5, 2, 3, 4; forward" in printed
    assert "times as long as before" in printed


def concluded(new, old, *arguments):
    return conclude(new, old, build_parser().parse_args(["bench", *arguments]))


BEFORE = report({"eager": {CASE: 1.0}, "fast": {CASE: 0.25}})


@pytest.mark.parametrize(
    ("time", "factor", "status"), [(0.5, "1.9", 1), (0.5, "2.1", 0), (0.5, None, 0), (0.2, "1", 0)]
)
def test_the_exit_status_is_that_of_the_factor(capsys, time, factor, status):
    new = report({"eager": {CASE: 1.0}, "fast": {CASE: time}})
    arguments = [] if factor is None else ["--against", "old.json", "--fail-slower", factor]
    assert concluded(new, BEFORE, *arguments) == status
    printed = capsys.readouterr().out
    assert ("SLOWER" in printed) is bool(status)
    assert "4.0x" in printed
    assert "on another machine" not in printed


@pytest.mark.parametrize(
    ("name", "verdict", "status"),
    [("fast", "wrong", 1), ("fast", "failed", 1), ("fast", "declined", 0), ("peer", "failed", 0)],
)
def test_only_backends_of_rnnjits_fail_the_command(capsys, name, verdict, status):
    assert concluded(report({"eager": {CASE: 1.0}, name: {CASE: verdict}}), None) == status
    assert f"{verdict} here" in capsys.readouterr().out


def test_an_interrupted_run_has_the_status_of_ctrl_c(capsys):
    new = replace(report({"eager": {CASE: 1.0}, "fast": {CASE: 9.0}}), complete=False)
    arguments = ("--against", "old.json", "--fail-slower", "1.15")
    assert concluded(new, BEFORE, *arguments) == 130
    assert "Interrupted" in capsys.readouterr().out


def test_another_machine_is_noticed(capsys):
    machine = Machine(cpu="another cpu", system="a system", cpus=2, isa="an isa")
    concluded(BEFORE, replace(BEFORE, machine=machine))
    assert "on another machine: another cpu" in capsys.readouterr().out


def test_nothing_in_common_is_no_comparison(capsys):
    new = report({"eager": {OTHER: 1.0}, "fast": {OTHER: 1.0}})
    assert concluded(new, BEFORE) == 0
    assert "nothing to compare" in capsys.readouterr().out
    with pytest.raises(UsageError, match="has no backend and case in common"):
        concluded(new, BEFORE, "--against", "old.json", "--fail-slower", "1.15")


def test_ratios_to_another_baseline_are_said_to_be_so():
    other = ContestantInfo(name="torch-int8", kind="baseline", title="PyTorch int8")
    new = replace(BEFORE, contestants=(other, *BEFORE.contestants[1:]))
    with pytest.raises(UsageError, match="ratios to eager, and this run to torch-int8"):
        concluded(new, BEFORE, "--against", "old.json", "--fail-slower", "1.15")


def test_ctrl_c_keeps_what_was_measured_and_ends_all_processes(tmp_path):
    notes, paths = tmp_path / "notes", [tmp_path / "report.json", tmp_path / "report.csv"]
    notes.touch()
    command = ["--contestants", "bench_contestants:HangingLater", "--rounds", "1"]
    command += ["--json", str(paths[0]), "--csv", str(paths[1])]
    places = os.pathsep.join(place for place in sys.path if place)
    process = subprocess.Popen(
        [sys.executable, "-m", "rnnjit", "bench", *command],
        env={**os.environ, NOTES: str(notes), "PYTHONPATH": places},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        while not notes.read_text() and process.poll() is None:
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        out, err = process.communicate(timeout=300)
    finally:
        process.kill()
    assert process.returncode == 130, err
    found = records.read(paths[0])
    assert not found.complete
    first = QUICK.cases((found.measurements[0].case.threads,))[0]
    assert [(m.contestant, m.case) for m in found.measurements] == [
        ("eager", first),
        ("hanging later", first),
    ]
    assert all(m.samples == 1 for m in found.measurements)
    assert len(paths[1].read_text().splitlines()) == 3
    assert "Interrupted" in out
    with pytest.raises(ProcessLookupError):
        os.kill(json.loads(notes.read_text())["pid"], 0)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--preset", "huge"), "invalid choice: 'huge'"),
        (("--contestants", "nobody"), "there is no contestant 'nobody': choose from eager, "),
        (("--contestants", "nowhere:A"), "'nowhere:A' is no contestant: No module named 'nowhere'"),
        (("--contestants", "bench_contestants:Nobody"), "has no attribute 'Nobody'"),
        (("--contestants", "bench_contestants:note"), "expected a subclass of Contestant"),
        (("--cell", "lstm,grus"), "expected cells of rnn, lstm, gru, got 'grus'"),
        (("--cell", ","), "expected cells of rnn, lstm, gru, got ','"),
        (("--preset", "training", "--dtype", "int8"), "--dtype int8 is for inference, and all"),
        (
            ("--preset", "quantized", "--dtype", "float16"),
            "--dtype float16 is of float32 cases, and --preset quantized has none: leave it out",
        ),
        (("--preset", "models", "--dtype", "int8"), "--dtype does not work with --preset models"),
        (("--dtype", "float16", "--contestants", "torch-int8"), "no contestant 'torch-int8'"),
        (
            ("--dtype", "int8", "--contestants", "eager"),
            "no contestant 'eager': choose from",
        ),
        (("--threads", "0"), "a whole number from 1 to 2147483647, got '0'"),
        (("--threads", "1,many"), "a whole number from 1 to 2147483647, got 'many'"),
        (("--rounds", "-1"), "a whole number from 1"),
        (("--csv", "-"), "--csv takes a file"),
        (("--html", "-"), "--html takes a file"),
        (("--json", "/nowhere/at/all.json"), "there is no folder '/nowhere/at'"),
        (("--fail-slower", "1.15"), "only with --against"),
        (("--fail-slower", "0.9"), "expected a number from 1, such as 1.15, got '0.9'"),
        (("--fail-slower", "nan"), "expected a number from 1, such as 1.15, got 'nan'"),
        (("--against", "/nowhere.json"), "'/nowhere.json' cannot be read: No such file"),
        (("--against", "/"), "'/' cannot be read: Is a directory"),
        (("--against", __file__), "cannot be used: it holds no report of rnnjit bench"),
    ],
)
def test_arguments_that_make_no_sense_get_one_line(capsys, arguments, says):
    with pytest.raises(SystemExit) as exit_:
        bench(*arguments)
    assert exit_.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("rnnjit bench: error: ")
    assert says in line


def test_help_names_the_presets_and_imports_no_peer(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["bench", "--help"])
    assert exit_.value.code == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in PRESETS)
    heavy = ("rnnjit.bench.runner", "matplotlib", "jax", "onnx", "openvino")
    code = f"import sys, rnnjit.cli; print([m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    ("package", "advice"),
    [
        (
            "matplotlib",
            "a plot needs matplotlib, which is not installed: pip install 'matplotlib>=3.9'",
        ),
        ("PIL", "a plot needs pillow, which is not installed: pip install 'pillow>=10.3'"),
        (
            "jinja2",
            "the page of a report needs jinja2, which is not installed: pip install 'jinja2>=3.1'",
        ),
    ],
)
def test_a_page_without_its_packages_is_refused_before_anything_is_measured(
    monkeypatch, capsys, tmp_path, package, advice
):
    for name in list(sys.modules):
        if name.startswith("rnnjit.bench.report") or name.partition(".")[0] == package:
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(SystemExit) as exit_:
        bench("--html", str(tmp_path / "report.html"))
    assert exit_.value.code == 2
    # Said once, and with a command that works in any folder.
    line = f"rnnjit bench: error: --html: {advice} (see rnnjit bench --help)\n"
    assert capsys.readouterr().err == line

"""`rnnjit bench`: what it prints, writes, refuses, and its exit status."""

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

from rnnjit.bench import files
from rnnjit.bench.plan import Plan
from rnnjit.bench.presets import PRESETS, Preset
from rnnjit.bench.records import Case, Machine, Report
from rnnjit.cli import main

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


def test_tables_and_files_say_the_same(tmp_path, capsys):
    paths = {kind: tmp_path / f"report.{kind}" for kind in ("json", "csv", "html")}
    outputs = [part for kind, path in paths.items() for part in (f"--{kind}", str(path))]
    contestants = "onnxruntime,bench_contestants:WrongGradient,bench_contestants:Absent"
    # The one that is wrong is no backend of rnnjit's.
    assert bench("--contestants", contestants, *outputs) == 0
    captured = capsys.readouterr()
    report = files.read(paths["json"])
    assert report.complete
    assert report.preset == "quick"
    verdicts = {(m.contestant, m.case.mode): m.verdict for m in report.measurements}
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
    report = msgspec.json.decode(capsys.readouterr().out, type=Report)
    assert [m.samples for m in report.measurements] == [1] * 4
    assert report.versions["torch"] == torch.__version__
    assert report.machine.cpu == "a cpu"
    here = Path(__file__).parent
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=here)
    assert report.commit.removesuffix("+") == head.stdout.strip()


@pytest.mark.parametrize("verdict", ["wrong", "raises"])
def test_a_backend_that_is_wrong_or_fails_is_exit_status_1(installed_backend, capsys, verdict):
    installed_backend(verdict)
    assert bench("--contestants", "broken", "--rounds", "1") == 1
    printed = capsys.readouterr().out
    assert ("is wrong in" if verdict == "wrong" else "failed in") in printed
    assert "broken" in printed


@pytest.fixture
def installed_backend(tmp_path, monkeypatch):
    """Installs a backend `broken`, as a package with an entry point, for all processes."""

    def install(verdict):
        does = "y.mul_(1.001)" if verdict == "wrong" else "raise OSError('in the kernel')"
        (tmp_path / "broken.py").write_text(
            "from rnnjit.testing import RecomputeBackend\n"
            "class Broken(RecomputeBackend):\n"
            "    name = 'broken'\n"
            "    def forward(self, *arguments):\n"
            "        y, h_n, *_ = found = super().forward(*arguments)\n"
            f"        {does}\n"
            "        return found\n"
            "BACKEND = Broken()\n"
        )
        info = tmp_path / "broken-1.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1\n")
        (info / "entry_points.txt").write_text("[rnnjit.backends]\nbroken = broken:BACKEND\n")
        monkeypatch.syspath_prepend(tmp_path)
        from rnnjit import registry

        found = registry._installed.__wrapped__()
        monkeypatch.setattr(registry, "_installed", lambda: found)

    return install


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A report of this command."""
    path = tmp_path_factory.mktemp("bench") / "old.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PRESETS, "quick", TINY)
        assert bench("--contestants", "numba", "--rounds", "2", "--json", str(path)) == 0
    return path


def faster(path, factor, changed):
    """The same report with numba's times another."""
    report = json.loads(path.read_text())
    for m in report["measurements"]:
        if m["contestant"] == "numba":
            m.update({key: m[key] * factor for key in ("p20", "p50", "p80")})
    changed.write_text(json.dumps(report))
    return str(changed)


def test_against_faster_times_it_fails_if_it_is_told_to(tmp_path, capsys, measured):
    old = faster(measured, 1e-6, tmp_path / "faster.json")
    assert bench("--contestants", "numba", "--against", old, "--fail-slower", "1.15") == 1
    printed = capsys.readouterr().out
    assert printed.count("SLOWER numba, 5, 2, 3, 4") == 2
    assert "times as long as before" in printed


def test_against_slower_times_all_is_well(tmp_path, capsys, measured):
    old = faster(measured, 1e6, tmp_path / "slower.json")
    assert bench("--contestants", "numba", "--against", old, "--fail-slower", "1.15") == 0
    assert "SLOWER" not in capsys.readouterr().out


def test_against_another_machine_it_says_so_and_fails_only_if_told_to(tmp_path, capsys, measured):
    changed = tmp_path / "old.json"
    faster(measured, 1e-6, changed)
    report = json.loads(changed.read_text())
    report["machine"]["cpu"] = "another cpu"
    changed.write_text(json.dumps(report))
    assert bench("--contestants", "numba", "--against", str(changed)) == 0
    printed = capsys.readouterr().out
    assert "on another machine: another cpu" in printed
    assert "before" in printed


def test_nothing_in_common_is_no_comparison(tmp_path, capsys, measured):
    arguments = ("--contestants", "eager", "--against", str(measured))
    assert bench(*arguments) == 0
    assert "nothing to compare" in capsys.readouterr().out
    with pytest.raises(SystemExit) as exit_:
        bench(*arguments, "--fail-slower", "1.15")
    assert exit_.value.code == 2
    assert "has no backend and case in common" in capsys.readouterr().err


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
    report = files.read(paths[0])
    assert not report.complete
    first = QUICK.cases((report.measurements[0].case.threads,))[0]
    assert [(m.contestant, m.case) for m in report.measurements] == [
        ("eager", first),
        ("hanging later", first),
    ]
    assert all(m.samples == 1 for m in report.measurements)
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

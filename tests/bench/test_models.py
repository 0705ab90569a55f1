"""Protects the preset "models": what is measured, said and refused, and how processes may end."""

import math
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
import tiny_model
import torch
from models_of_a_report import REPORT
from models_of_a_report import row as made_row
from tiny_model import CASE
from torch import nn

from rnnjit.bench import records
from rnnjit.bench.models import load_case, run, share, trial, worker
from rnnjit.bench.models.records import (
    About,
    ModelReport,
    ModelRow,
    merge,
    read_models,
)
from rnnjit.bench.models.requirements import lacking
from rnnjit.bench.process import Child, WorkerError
from rnnjit.bench.report.models import markdown, mean
from rnnjit.cli import main

TINY = Path(tiny_model.__file__)


def variant(folder, name, *lines):
    """A file whose case is the tiny one, changed."""
    path = folder / f"{name}.py"
    head = ["import os, time", "from dataclasses import replace", "from tiny_model import CASE"]
    path.write_text("\n".join([*head, *lines]) + "\n")
    return path


def answered(path, rounds=0):
    started, *rows, finished = worker.answers(path, rounds)
    assert finished == worker.Finished()
    assert started.passes == ("inference", "training")
    return [each.row for each in rows]


def test_a_model_is_compared_and_timed(monkeypatch):
    monkeypatch.setattr(trial, "SAMPLE", 0.001)
    rows = answered(TINY, rounds=1)
    assert [(row.what, row.verdict, row.reason) for row in rows] == [
        ("inference", "right", ""),
        ("training", "right", ""),
    ]
    for row in rows:
        assert row.about.model == "tiny_model"
        assert (row.about.name, row.about.remark) == ("tiny", "nothing in the way")
        assert row.ratio == row.eager.p50 / row.compiled.p50
        assert row.eager.samples == 1
        assert 0 < row.share <= 1
        assert row.versions["torch"] == torch.__version__


def test_the_recurrent_part_makes_the_same_calls_and_changes_no_gradient():
    model = tiny_model.Tiny()
    step = CASE.training(model, torch.float32)
    calls = []
    model.gru.register_forward_hook(lambda module, given, found: calls.append(given[0].shape))
    twice = share.recurrent_part(CASE, model, lambda: (step(), step()), training=True)
    before = [parameter.grad.clone() for parameter in model.parameters()]
    calls.clear()
    twice()
    assert calls == [(6, 2, 4)] * 2
    torch.testing.assert_close([p.grad for p in model.parameters()], before, rtol=0, atol=0)
    linear = replace(CASE, layers=(nn.LSTM,))
    assert share.recurrent_part(linear, model, step, training=True) is None


def test_wrong_results_have_no_time(tmp_path):
    lines = (
        "import rnnjit, torch",
        "def off(model):",
        "    with torch.no_grad():",
        "        model.linear.weight.mul_(1.01)",
        "    return rnnjit.compile(model)",
        "CASE = replace(CASE, compile=off)",
    )
    rows = answered(variant(tmp_path, "off", *lines), rounds=1)
    assert [(row.verdict, row.ratio) for row in rows] == [("wrong", None)] * 2
    assert "result 0 is off by" in rows[0].reason
    assert "the loss is off by" in rows[1].reason


def test_a_pass_that_raises_has_failed_and_the_other_is_measured(tmp_path):
    path = variant(tmp_path, "raises", "CASE = replace(CASE, inference=lambda m, d: 1 / 0)")
    first, second = answered(path)
    assert (first.verdict, first.reason) == ("failed", "ZeroDivisionError: division by zero")
    assert second.verdict == "right"


def test_what_is_not_installed_is_absent(tmp_path):
    needs = ("torch==2.0", "nothing-here[extra]==1.2")
    rows = answered(variant(tmp_path, "absent", f"CASE = replace(CASE, requires={needs})"))
    torch_is = torch.__version__
    assert [(row.verdict, row.reason) for row in rows] == [
        (
            "absent",
            f"needs torch==2.0, found {torch_is}; needs nothing-here[extra]==1.2, found none",
        )
    ] * 2
    # The build's suffix need not be named.
    assert lacking([f"torch=={torch_is}", f"torch=={torch_is.partition('+')[0]}"]) == ""


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"requires": ("torch",)}, "requires must name exact versions, .*, got 'torch'"),
        ({"requires": ("torch>=2",)}, "exact versions"),
        ({"inference": None, "training": None}, "tiny needs an inference call or a training step"),
        ({"no_deps": ("x",)}, "no_deps must name what requires names, got 'x'"),
    ],
)
def test_a_case_that_makes_no_sense_is_refused(changes, says):
    with pytest.raises(ValueError, match=says):
        replace(CASE, **changes)


@pytest.mark.parametrize(
    ("text", "error", "says"),
    [("1 / 0", ZeroDivisionError, "division"), ("CASE = 3", TypeError, "must set CASE to a Model")],
)
def test_a_file_without_a_model_is_refused(tmp_path, text, error, says):
    path = tmp_path / "none.py"
    path.write_text(text)
    with pytest.raises(error, match=says):
        load_case(path)
    (finished,) = worker.answers(path, 0)
    assert finished.error.startswith(error.__name__)


def measured(*files, timeout=300.0):
    report = run.run_models(files, threads=1, rounds=0, timeout=timeout)
    assert report.complete
    return [(row.about.name, row.what, row.verdict, row.reason) for row in report.rows]


@pytest.mark.full
def test_a_process_that_crashes_or_hangs_is_a_row_and_the_next_model_runs(tmp_path):
    dies = variant(
        tmp_path,
        "dies",
        "CASE = replace(CASE, name='dies', training=lambda m, d: os.kill(os.getpid(), 11))",
    )
    hangs = variant(
        tmp_path,
        "hangs",
        "CASE = replace(CASE, name='hangs', inference=lambda m, d: time.sleep(999))",
    )
    broken = tmp_path / "broken.py"
    broken.write_text("1 / 0")
    assert measured(dies, hangs, broken, TINY, timeout=30) == [
        ("dies", "inference", "right", ""),
        ("dies", "training", "failed", "its process was killed by SIGSEGV"),
        ("hangs", "inference", "failed", "no answer within 30 s: ended"),
        ("hangs", "training", "failed", "no answer within 30 s: ended"),
        ("broken", None, "failed", "ZeroDivisionError: division by zero"),
        ("tiny", "inference", "right", ""),
        ("tiny", "training", "right", ""),
    ]


@pytest.fixture
def scripted(monkeypatch):
    """The process of a model runs this code instead, which can say its first answers, `lines`."""

    def script(code):
        started = worker.Started(About(model="m", name="a model"), ("inference", "training"))
        row = worker.Row(ModelRow(about=started.about, what="inference"))
        lines = [msgspec.json.encode(each).decode() for each in (started, row)]
        monkeypatch.setattr(run, "_WORKER", ("-c", f"lines = {lines}\n{code}"))

    return script


SAY = "import os, time; print(*lines, sep='\\n', flush=True)\n"


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (SAY + "os.kill(os.getpid(), 9)", "its process was killed by SIGKILL"),
        (SAY + "raise SystemExit('no memory')", "its process ended with status 1; no memory"),
        (SAY + "print('{', flush=True)", "an invalid answer: b'{\\n'"),
    ],
)
def test_what_a_process_owes_when_it_ends_has_failed(scripted, code, reason):
    scripted(code)
    assert measured(Path("m.py")) == [
        ("a model", "inference", "right", ""),
        ("a model", "training", "failed", reason),
    ]


def test_ctrl_c_keeps_what_was_measured_and_ends_the_process(scripted, monkeypatch):
    children = []

    class Interrupted(Child):
        def receive(self, timeout):
            children.append(self)
            if len(children) > 2:
                raise KeyboardInterrupt
            return super().receive(timeout)

    monkeypatch.setattr(run, "Child", Interrupted)
    scripted(SAY + "time.sleep(999)")
    found = run.run_models([Path("m.py")], threads=1)
    assert not found.complete
    assert [each.what for each in found.rows] == ["inference"]
    assert not children[0].alive
    with pytest.raises(WorkerError, match="its process was ended"):
        Child.receive(children[0], 300)


def test_means_are_of_those_that_are_mostly_recurrent():
    assert mean(REPORT, "inference") == (math.sqrt(2.0 * 8.0), 2, 3)
    assert mean(REPORT, "training") == (4.0, 1, 1)
    assert mean(msgspec.structs.replace(REPORT, rows=REPORT.rows[-2:]), "training") is None


def test_the_table_of_a_page():
    assert markdown(REPORT).splitlines()[2:] == [
        "| A<br>made | GRU(4, 5) | B=1 | 2.0x, share 90% | 4.0x, share 80% |  |",
        "| B<br>made | GRU(4, 5) | B=1 | 8.0x, share 60% | wrong |  |",
        "| C<br>made | GRU(4, 5) | B=1 | 0.50x, share 50% |  |  |",
        "| D<br>made | GRU(4, 5) | B=1 | failed | failed |  |",
        "| **geometric mean**, share over 50% |  |  | **4.0x** | **4.0x** |  |",
        "",
        "Measured with 2 threads on a cpu, float32, torch 2.13.0, 2.9.0.",
    ]


def test_a_merged_report_has_the_last_rows_of_each_model(tmp_path):
    again = made_row("a", "inference", 3.0, 0.9)
    found = merge([REPORT, msgspec.structs.replace(REPORT, rows=(again,))])
    assert found.rows == (again, *REPORT.rows[2:])
    with pytest.raises(ValueError, match="reports of one machine are needed, got a cpu with 2 thr"):
        merge([REPORT, msgspec.structs.replace(REPORT, threads=1)])
    path = tmp_path / "report.json"
    path.write_bytes(records.encode(found))
    assert read_models(path) == found
    with pytest.raises(ValueError, match="it holds no report of rnnjit bench"):
        records.read(path)


def test_files_of_a_folder(tmp_path):
    for name in ("b.py", "a.py", "_shared.py", "c.txt"):
        (tmp_path / name).touch()
    assert run.model_files(tmp_path) == [tmp_path / "a.py", tmp_path / "b.py"]
    assert run.model_files(tmp_path / "c.txt") == [tmp_path / "c.txt"]
    with pytest.raises(OSError, match="does not exist"):
        run.model_files(tmp_path / "none")


def bench(*arguments):
    return main(["bench", "--preset", "models", *arguments])


@pytest.fixture
def made_up(monkeypatch):
    """The command measures nothing, and gives the report that was made up."""
    asked = {}

    def run_models(files, **named):
        asked.update(named, files=[path.stem for path in files])
        return msgspec.structs.replace(REPORT, command=named["command"])

    monkeypatch.setattr(run, "run_models", run_models)
    return asked


def test_the_command_prints_a_table_and_fails_if_a_model_is_wrong(made_up, tmp_path, capsys):
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.py").touch()
    arguments = ("--models", str(tmp_path), "--only", "c,a", "--quick", "--threads", "1")
    file = tmp_path / "report.json"
    assert bench(*arguments, "--json", str(file)) == 1
    assert made_up["files"] == ["a", "c"]
    assert (made_up["rounds"], made_up["threads"]) == (run.QUICK_ROUNDS, 1)
    command = f"rnnjit bench --preset models --models {tmp_path} --only c,a --threads 1 --quick"
    assert read_models(file).command == command
    printed = capsys.readouterr().out
    for words in ("8.0x", "8 s to 1 s, share 60%", "2 of 3", "B is wrong in training: the loss is"):
        assert words in printed
    assert "D failed: it crashed" in printed


def test_the_command_takes_its_rounds_and_seconds(made_up, tmp_path, capsys):
    (tmp_path / "a.py").touch()
    bench("--models", str(tmp_path), "--rounds", "2", "--timeout", "5", "--json", "-")
    assert (made_up["rounds"], made_up["timeout"]) == (2, 5)
    assert msgspec.json.decode(capsys.readouterr().out, type=ModelReport).rows == REPORT.rows


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        *(
            ((option, value), f"{option} does not work with --preset models: leave it out")
            for option, value in (
                ("--cell", "gru"),
                ("--contestants", "eager"),
                ("--csv", "x.csv"),
                ("--html", "x.html"),
                ("--against", "x.json"),
                ("--fail-slower", "2"),
            )
        ),
        (("--threads", "1,2"), "--threads takes one number with --preset models"),
        (("--models", "/nowhere"), "--models: '/nowhere' does not exist: name a folder"),
        (("--models", str(TINY), "--only", "b"), "there is no model 'b': choose from tiny_model"),
        (("--models", str(TINY), "--only", ","), "--only: it names no model: choose from tiny"),
    ],
)
def test_options_that_do_not_apply_are_refused(capsys, arguments, says):
    with pytest.raises(SystemExit) as exit_:
        bench(*arguments)
    assert exit_.value.code == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--models", "--only", "--timeout"])
def test_other_presets_refuse_the_options_of_this_one(capsys, option):
    with pytest.raises(SystemExit):
        main(["bench", "--preset", "quick", option, "1"])
    expected = f"{option} works only with --preset models: add --preset models"
    assert expected in capsys.readouterr().err

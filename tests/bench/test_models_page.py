"""Protects what is committed of whole models: their files, their page, their environments."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import models_page
import msgspec
import pictures
import pytest
import whole_models
from models_of_a_report import REPORT
from models_of_a_report import row as made_row
from tiny_model import CASE
from whole_models import Environment

from rnnjit.bench import records
from rnnjit.bench.models import load_case
from rnnjit.bench.models.records import read_models
from rnnjit.bench.models.run import model_files
from rnnjit.bench.report.models import markdown
from rnnjit.bench.report.plots import models
from rnnjit.bench.report.plots.style import DARK, LIGHT

FILES = model_files(whole_models.FOLDER)
PINS = {"torch": "2.0", "numba": "1.0", "llvmlite": "0.1", "numpy": "9"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_model_is_described_without_its_package(path):
    case = load_case(path)
    assert "" not in (case.name, case.recurrent, case.call, case.source)


def test_models_have_names_of_their_own():
    names = [load_case(path).name for path in FILES]
    assert len(set(names)) == len(names)


def test_the_table_of_the_page_is_that_of_the_committed_report():
    report = read_models(models_page.RESULTS)
    assert models_page.table_of(models_page.PAGE.read_text()) == markdown(report)
    assert report.complete
    assert {row.about.model for row in report.rows} == {path.stem for path in FILES}


def test_a_table_takes_the_place_of_another(monkeypatch, tmp_path):
    page, file = tmp_path / "models.md", tmp_path / "report.json"
    page.write_text(f"before\n{models_page.BEGIN}old\n{models_page.END}behind\n")
    file.write_bytes(records.encode(REPORT))
    monkeypatch.setattr(models_page, "PAGE", page)
    for _ in range(2):
        assert models_page.main([str(file)]) == 0
        text = page.read_text()
        assert models_page.table_of(text) == markdown(REPORT)
        assert text.startswith("before\n")
        assert text.endswith("behind\n")
    with pytest.raises(ValueError, match="the page needs the lines"):
        models_page.table_of("before")


@pytest.mark.parametrize("theme", [LIGHT, DARK])
def test_the_picture_has_a_bar_for_each_time(theme):
    (plot,) = models.plots(REPORT)
    (axes,) = plot.draw(theme).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["A", "B", "C"]
    bars = [(round(bar.get_y()), bar.get_x(), bar.get_width()) for bar in axes.patches]
    assert bars == [(0, 1.0, 1.0), (0, 1.0, 3.0), (1, 1.0, 7.0), (2, 0.5, 0.5)]
    words = [text.get_text() for text in axes.texts]
    assert words == ["2.0x, 90%", "4.0x, 80%", "8.0x, 60%", "0.50x, 50%"]
    none = msgspec.structs.replace(REPORT, rows=REPORT.rows[-1:])
    assert list(models.plots(none)) == []


def test_pictures_of_models_are_drawn_from_a_file(tmp_path, capsys):
    file = tmp_path / "report.json"
    file.write_bytes(records.encode(REPORT))
    assert pictures.main([str(file), "-o", str(tmp_path / "drawn")]) == 0
    names = {path.name for path in (tmp_path / "drawn").iterdir()}
    assert names == {"models.svg", "models.png", "models-dark.svg", "models-dark.png"}
    assert len(capsys.readouterr().out.splitlines()) == 4


def test_models_that_need_the_same_share_an_environment(tmp_path):
    def file(name, requires):
        path = tmp_path / f"{name}.py"
        head = "from dataclasses import replace\nfrom tiny_model import CASE\n"
        path.write_text(f"{head}CASE = replace(CASE, requires={requires})\n")
        return path

    needs = ("b==2", "a==1.0")
    files = [file("x", needs), file("y", ()), file("z", needs[::-1])]
    first, second = whole_models.environments(files)
    assert [path.stem for path, _ in first.models] == ["x", "z"]
    assert first.folder == whole_models.ENVIRONMENTS / "a-1.0_b-2"
    assert first.python == first.folder / "bin/python"
    assert second.python == Path(sys.executable)
    assert whole_models.make(second) == ""


def test_what_pip_installs():
    root = str(whole_models.ROOT)
    fixed = ["torch==2.0", "numba==1.0", "llvmlite==0.1"]
    quiet = ["install", "--quiet"]
    plain = Environment(("a==1",), (), ())
    assert whole_models.installs(plain, PINS) == [[*quiet, *fixed, "a==1", "-e", root]]
    # A model may ask for another torch, and for a package without what that one pins.
    other = Environment(("a==1", "b==2", "torch==2.1"), ("a",), ())
    assert whole_models.installs(other, PINS) == [
        [*quiet, *fixed[1:], "b==2", "torch==2.1", "-e", root],
        [*quiet, "--no-deps", "a==1"],
    ]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Environments are made here."""
    monkeypatch.setattr(whole_models, "ENVIRONMENTS", tmp_path)
    monkeypatch.setattr(whole_models, "ROOT", tmp_path)
    (tmp_path / "constraints.txt").write_text("".join(f"{n}=={v}\n" for n, v in PINS.items()))
    return tmp_path


@pytest.fixture
def commands(folder, monkeypatch):
    """The commands that ran; those that contain a word of `failing` fail."""
    ran, failing = [], []

    def run(command, **named):
        ran.append(command[1:])
        bad = any(word in command for word in failing)
        if "venv" in command:
            Path(command[-1]).mkdir(exist_ok=True)
        return subprocess.CompletedProcess(command, int(bad), "", "a\nERROR: none\nb\n" * bad)

    monkeypatch.setattr(subprocess, "run", run)
    return ran, failing


def test_an_environment_is_made_once(commands):
    ran, failing = commands
    environment = Environment(("a==1",), (), ())
    failing.append("a==1")
    assert whole_models.make(environment) == "ERROR: none"
    failing.clear()
    for _ in range(2):
        assert whole_models.make(environment) == ""
    made = [words[1] for words in ran]
    assert made == ["venv", "pip", "venv", "pip"]
    # It is made anew if it needs something else.
    assert whole_models.make(Environment(("a==1",), ("a",), ())) == ""
    assert [words[1] for words in ran[4:]] == ["venv", "pip", "pip"]


def test_models_that_cannot_be_installed_are_absent(commands, monkeypatch, capsys):
    commands[1].append("a==1")
    files = [Path("x.py"), Path("y.py")]
    cases = {"x": replace(CASE, requires=("a==1",)), "y": CASE}
    monkeypatch.setattr(whole_models, "load_case", lambda path: cases[path.stem])
    monkeypatch.setattr(whole_models, "measure", lambda *given: REPORT)
    found = whole_models.run(files, [])
    absent = [row for row in found.rows if row.about.model == "x"]
    assert {row.reason for row in absent} == {"pip could not install its packages"}
    assert capsys.readouterr().err == "a-1: ERROR: none\n"
    assert [row.what for row in absent] == ["inference", "training"]
    assert [row for row in found.rows if row.about.model != "x"] == [*REPORT.rows]


def test_a_report_keeps_the_rows_of_other_models_that_are_still_there(monkeypatch, tmp_path):
    for name in ("a", "c"):
        (tmp_path / f"{name}.py").touch()
    again = made_row("a", "inference", 3.0, 0.9)
    ran = []

    def run(command, env, check):
        ran.append(command)
        report = msgspec.structs.replace(REPORT, rows=(again,))
        Path(command[command.index("--json") + 1]).write_bytes(records.encode(report))

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(whole_models, "FOLDER", tmp_path)
    out = tmp_path / "report.json"
    out.write_bytes(records.encode(REPORT))
    given = ["--only", "a", "--python", "other", "--rounds", "2", "-o", str(out)]
    assert whole_models.main(given) == 0
    (command,) = ran
    assert command[0] == "other"
    assert command[command.index("--only") + 1] == "a"
    assert command[-2:] == ["--rounds", "2"]
    found = read_models(out)
    assert found.rows == (again, *(row for row in REPORT.rows if row.about.model == "c"))
    assert found.command == "python benchmarks/whole_models.py"

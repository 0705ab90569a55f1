"""Protects the command line against invalid arguments: one line, status 2, no file."""

import re

import pytest
import torch
from bad_calls import H, I
from torch import nn

from rnnjit.cli import main

LINES = {
    "nothing": ((), "required: COMMAND"),
    "no such command": (("tune",), "invalid choice: 'tune'"),
    "no such flag": (("info", "--nonsense"), "unrecognized arguments: --nonsense"),
    "an abbreviation": (("compare", "--hidden", "5"), "unrecognized arguments: --hidden 5"),
    "no threads": (("compare", "--threads", "0"), "argument --threads: expected a whole number"),
    "rounds below none": (("compare", "--rounds", "-1"), "argument --rounds: expected a whole nu"),
    "no steps": (
        ("compare", "--steps", "0"),
        "argument --steps/--T: expected a whole number from 1",
    ),
    "half a layer": (("compare", "--num-layers", "1.5"), "expected a whole number .* got '1.5'"),
    "a number missing": (("compare", "--batch"), "argument --batch.*: expected one argument"),
    "cell": (("compare", "--nonlinearity", "gelu"), "invalid choice: 'gelu'"),
    "seed": (("compare", "--seed", "-1"), "argument --seed: expected a whole number from 0"),
    "check a typo": (("check", "nunba"), "'nunba' is not installed; .* did you mean 'numba'"),
    "check two": (("check", "numba", "tvm"), "unrecognized arguments: tvm"),
    "export nothing": (("export",), "required: MODEL, -o/--output"),
    "export nowhere": (("export", "model.pt"), "required: -o/--output"),
    "export no file": (("export", "no.pt", "-o", "out"), "'no.pt' cannot be opened: No such file"),
    "export a folder": (("export", ".", "-o", "out"), "'.' cannot be opened: Is a directory"),
    "export text": (("export", "text.pt", "-o", "out"), "not a file that torch.save wrote"),
    "export a linear": (("export", "linear.pt", "-o", "out"), "it is a Linear without one"),
    "export into a file": (("export", "rnn.pt", "-o", "text.pt"), "text.pt is a file"),
    "export below a file": (("export", "rnn.pt", "-o", "text.pt/out"), "lie in a directory"),
    "export a half": (
        ("export", "half.pt", "-o", "out"),
        "must be float32 or float64, got torch.f",
    ),
    "export for a typo": (
        ("export", "rnn.pt", "-o", "out", "--target", "aarch46"),
        "argument --target: invalid choice: 'aarch46' .choose from .*aarch64",
    ),
    "export a null": (("export", "rnn.pt", "-o", "a\0b"), "path must hold no null character"),
}


@pytest.mark.parametrize("name", LINES)
def test_lines_that_make_no_sense(name, tmp_path, monkeypatch, capsys):
    arguments, message = LINES[name]
    monkeypatch.chdir(tmp_path)
    torch.save(nn.RNN(I, H), "rnn.pt")
    torch.save(nn.RNN(I, H).half(), "half.pt")
    torch.save(nn.Linear(I, H), "linear.pt")
    (tmp_path / "text.pt").write_text("no model")
    with pytest.raises(SystemExit) as left:
        main(list(arguments))
    assert left.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert re.search(message, printed.err)
    assert len(list(tmp_path.rglob("*"))) == 4


@pytest.mark.parametrize("arguments", [(), ("compare",), ("check",), ("export",), ("info",)])
def test_help_is_never_refused(arguments, capsys):
    with pytest.raises(SystemExit) as left:
        main([*arguments, "--help"])
    assert left.value.code == 0
    assert capsys.readouterr().out.startswith("usage: rnnjit")

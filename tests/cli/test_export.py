"""Protects `rnnjit export`: the files it writes, and its refusals in one line."""

import json

import pytest
import torch
from torch import nn

import rnnjit
from rnnjit.cli import main


@pytest.fixture
def model(tmp_path):
    file = tmp_path / "model.pt"
    torch.manual_seed(0)
    torch.save(nn.RNN(3, 5, 2), file)
    return file


def manifest(place):
    return json.loads((place / "manifest.json").read_text())


def test_it_exports_what_was_trained(model, tmp_path, capsys):
    place = tmp_path / "out"
    assert main(["export", str(model), "-o", str(place)]) == 0
    assert str(place) in capsys.readouterr().out
    rnn = torch.load(model, weights_only=False)
    x = torch.randn(4, 2, 3)
    found = rnnjit.load_artifact(place)(x)
    torch.testing.assert_close(found, rnn(x))


def test_flags_say_for_what_and_under_which_name(model, tmp_path):
    place = tmp_path / "out"
    flags = ["--target", "aarch64", "--name", "net"]
    assert main(["export", str(model), "-o", str(place), *flags]) == 0
    assert (manifest(place)["target"], manifest(place)["name"]) == ("aarch64", "net")
    assert (place / "net.h").exists()


@pytest.mark.full
def test_every_layer_of_a_model_gets_a_directory(tmp_path):
    file = tmp_path / "model.pt"
    torch.save(nn.ModuleDict({"a": nn.LSTM(3, 5), "b": nn.GRU(5, 2)}), file)
    assert main(["export", str(file), "-o", str(tmp_path / "out")]) == 0
    sizes = {name: manifest(tmp_path / "out" / name)["spec"]["hidden_size"] for name in "ab"}
    assert sizes == {"a": 5, "b": 2}


REFUSED = {
    "target": (["--target", "z80"], "invalid choice: 'z80' (choose from"),
    "name": (["--name", "a b"], "C identifier"),
    "cell": (["--nonlinearity", "relu"], "nonlinearity"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_makes_no_sense_is_said_in_a_line(model, tmp_path, what, capsys):
    flags, said = REFUSED[what]
    with pytest.raises(SystemExit) as left:
        main(["export", str(model), "-o", str(tmp_path / "out"), *flags])
    assert left.value.code == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.full
def test_other_files_are_left_alone(model, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("x")
    with pytest.raises(SystemExit):
        main(["export", str(model), "-o", str(tmp_path / "out"), "--overwrite"])
    assert "holds other files" in capsys.readouterr().err
    place = str(tmp_path / "new")
    assert main(["export", str(model), "-o", place]) == 0
    with pytest.raises(SystemExit):
        main(["export", str(model), "-o", place])
    assert "--overwrite" in capsys.readouterr().err
    assert main(["export", str(model), "-o", place, "--overwrite"]) == 0

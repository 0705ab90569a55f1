"""Protects against artifacts that cannot be exported or loaded: no file, and a usable module."""

import pytest
import torch
from bad_calls import H, I, X, pair
from torch import nn

import rnnjit


def spoilt(name, value):
    rnn = nn.RNN(I, H)
    setattr(rnn, name, value)
    return rnn


MODULES = {
    "None": (lambda: None, TypeError, "module must be a torch.nn.RNN, .* got NoneType"),
    "class": (lambda: nn.RNN, TypeError, "module must be a torch.nn.RNN, .* got type"),
    "cell": (lambda: nn.RNNCell(I, H), TypeError, "nn.LSTM or nn.GRU, got RNNCell"),
    "Recurrent": (lambda: rnnjit.Recurrent(rnnjit.cells.JANET(I, H)), TypeError, "your own"),
    "model": (lambda: nn.Sequential(nn.RNN(I, H)), TypeError, "got Sequential: give the layer"),
    "float16": (lambda: nn.RNN(I, H).half(), ValueError, "float32 or float64, got torch.float16"),
    "meta": (lambda: nn.RNN(I, H, device="meta"), ValueError, "weights on meta: load them first"),
    "weight": (
        lambda: spoilt("weight_hh_l0", nn.Parameter(torch.zeros(6, 6))),
        RuntimeError,
        r"weight_hh_l0 must have shape \[5, 5\], got \[6, 6\]",
    ),
    "mode": (lambda: spoilt("mode", "LSTM"), AssertionError, "mode must be .* got 'LSTM'"),
}


@pytest.mark.parametrize("name", MODULES)
def test_modules(name, tmp_path):
    make, error, message = MODULES[name]
    with pytest.raises(error, match=message):
        rnnjit.export_artifact(make(), tmp_path / "artifact")
    assert not list(tmp_path.iterdir())


OPTIONS = {
    "target": ({"target": "z80"}, ValueError, "target must be one of .*native.*, got 'z80'"),
    "target None": ({"target": None}, ValueError, "target must be one of .* got None"),
    "target list": (
        {"target": ["native"]},
        ValueError,
        r"target must be one of .* got \['native'\]",
    ),
    "target case": ({"target": "Native"}, ValueError, "target must be one of .* got 'Native'"),
    "name of two": ({"name": "a b"}, ValueError, "name must be a C identifier.* got 'a b'"),
    "name digit": ({"name": "1st"}, ValueError, "name must be a C identifier.* got '1st'"),
    "name empty": ({"name": ""}, ValueError, "name must be a C identifier.* got ''"),
    "name path": ({"name": "../rnn"}, ValueError, "name must be a C identifier.* got '../rnn'"),
    "name line": ({"name": "rnn\n"}, ValueError, r"name must be a C identifier.* got 'rnn\\n'"),
    "name accent": ({"name": "é"}, ValueError, "name must be a C identifier.* got 'é'"),
    "name None": ({"name": None}, ValueError, "name must be a C identifier.* got None"),
    "name bytes": ({"name": b"rnn"}, ValueError, "name must be a C identifier.* got b'rnn'"),
    "no such": ({"nmae": "rnn"}, TypeError, "unexpected keyword argument 'nmae'"),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_options(name, tmp_path):
    options, error, message = OPTIONS[name]
    rnn, fast = pair()
    with pytest.raises(error, match=message):
        rnnjit.export_artifact(fast, tmp_path / "artifact", **options)
    assert not list(tmp_path.iterdir())
    torch.testing.assert_close(fast(X), rnn(X))


PATHS = {
    "None": (None, TypeError, "path must be a str or a Path, got NoneType"),
    "number": (3, TypeError, "path must be a str or a Path, got int"),
    "null": ("a\0b", ValueError, r"path must hold no null character, got 'a\\x00b'"),
    "file": ("file", FileExistsError, "path must be a directory or not there yet, .* is a file"),
    "in a file": ("file/artifact", FileExistsError, "path must lie in a directory, .*file is a"),
    "others' files": ("others", FileExistsError, "path must be empty or hold an artifact"),
}


@pytest.mark.parametrize("name", PATHS)
def test_paths_to_write_to(name, tmp_path, monkeypatch):
    path, error, message = PATHS[name]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    (tmp_path / "others").mkdir()
    (tmp_path / "others" / "mine").write_text("mine")
    with pytest.raises(error, match=message):
        rnnjit.export_artifact(nn.RNN(I, H), path, overwrite=True)
    assert (tmp_path / "file").read_text() == "mine"
    assert (tmp_path / "others" / "mine").read_text() == "mine"
    assert len(list(tmp_path.rglob("*"))) == 3


LOADED = {
    "None": (None, TypeError, "path must be a str or a Path, got NoneType"),
    "null": ("a\0b", ValueError, "path must hold no null character"),
    "nowhere": ("nowhere", rnnjit.ArtifactError, "nowhere is no artifact.*No such file"),
    "empty": ("empty", rnnjit.ArtifactError, "empty is no artifact.*No such file"),
    "file": ("file", rnnjit.ArtifactError, "file is no artifact.*Not a directory"),
    "no checksum": ("part", rnnjit.ArtifactError, "part is no artifact, or not all of one: man"),
    "no JSON": ("text", rnnjit.ArtifactError, "is damaged: its checksum does not fit"),
}


@pytest.mark.parametrize("name", LOADED)
def test_what_cannot_be_loaded(name, tmp_path, monkeypatch):
    path, error, message = LOADED[name]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    for folder in ("empty", "part", "text"):
        (tmp_path / folder).mkdir()
    (tmp_path / "part" / "manifest.json").write_text("{}")
    (tmp_path / "text" / "manifest.json").write_text("not JSON")
    (tmp_path / "text" / "manifest.sha256").write_text("0  manifest.json")
    with pytest.raises(error, match=message):
        rnnjit.load_artifact(path)


def test_dropout_is_no_obstacle_and_left_out(tmp_path):
    torch.manual_seed(0)
    rnn = nn.RNN(I, H, 2, dropout=0.5)
    found = rnnjit.load_artifact(rnnjit.export_artifact(rnn, tmp_path / "artifact"))
    with torch.no_grad():
        torch.testing.assert_close(found(X), rnn.eval()(X))

"""Protects chunks that earlier processes compiled: they are found, right, and run alone."""

import os
import subprocess
import sys

import pytest
import torch

from rnnjit.ir import RNN_RELU, CellSpec
from rnnjit.runtime import object_cache, torch_private
from rnnjit_inductor import compiler, library_cache
from rnnjit_inductor.plan import MATRIX, Plan

KEY = compiler.Key("forward", RNN_RELU, torch.float64, "cpu", Plan(1, MATRIX, 1))
#: relu(z + h W^T) of one step, two rows and three units, by hand.
Z, H = [[0.5, -1.0, 2.0], [-3.0, 0.25, 1.0]], [[1.0, 2.0, -1.0], [0.5, 0.0, 3.0]]
W = [[1.0, 0.0, 2.0], [0.0, -1.0, 0.5], [1.0, 1.0, 1.0]]
Y = [[0.0, 0.0, 4.0], [3.5, 1.75, 4.5]]
CODE = f"""
import sys
import torch
from rnnjit.ir import RNN_RELU
from rnnjit_inductor import compiler
from rnnjit_inductor.plan import MATRIX, Plan
key = compiler.Key("forward", RNN_RELU, torch.float64, "cpu", Plan(1, MATRIX, 1))
z, h, w = (torch.tensor(each, dtype=torch.float64) for each in ({Z}, {H}, {W}))
run = compiler.compiled(key)
y = run(z.view(1, 1, 2, 3, 1), h.view(1, 2, 3, 1), w)[0]
print(y.flatten().tolist(), "torch._inductor.compile_fx" in sys.modules)
"""


def cell(text):
    return CellSpec.parse(
        f"cell 1\ngates 1\nstates h\nparameters\nprogram (zx_0, zh_0, h) {text}\noperand none\n"
    )


def test_no_two_cells_share_a_chunk(monkeypatch):
    """Whatever they are called; the same cell is found under its name again."""
    names = []
    monkeypatch.setattr(library_cache, "load", lambda name: names.append(name) or len(names))
    text = "%3 = add(%0, %1); %4 = add(%2, %3); %5 = {}(%4); return %5, %5"
    cells = [cell(text.format(name)) for name in ("tanh", "sigmoid", "relu", "tanh")]
    assert len({each.name for each in cells}) == 1
    for each in cells:
        for pass_ in ("forward", "backward"):
            compiler._compile(KEY._replace(cell=each, pass_=pass_))
    assert len(set(names)) == 6
    assert names[:2] == names[6:]


def in_a_process(folder):
    done = subprocess.run(
        [sys.executable, "-c", CODE],
        env={**os.environ, "RNNJIT_CACHE_DIR": str(folder)},
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    values, imported = done.stdout.strip().rsplit(" ", 1)
    return values, imported == "True"


def test_a_second_process_imports_no_compiler(tmp_path):
    expected = str([value for row in Y for value in row])
    assert in_a_process(tmp_path / "new") == (expected, True)
    (kept,) = (tmp_path / "new").iterdir()
    assert in_a_process(tmp_path / "new") == (expected, False)
    kept.write_bytes(kept.read_bytes()[:-1])
    assert in_a_process(tmp_path / "new") == (expected, True)


@pytest.fixture
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("RNNJIT_CACHE_DIR", str(tmp_path))
    return tmp_path


@pytest.mark.usefixtures("own_cache")
def test_what_is_no_library_is_not_loaded():
    name = library_cache.name_of("a test")
    object_cache.keep(name, b"no library", "inductor")
    assert library_cache.load(name) is None


def test_only_what_works_alone_is_kept(monkeypatch, own_cache, tmp_path_factory):
    path = tmp_path_factory.mktemp("made") / "made.so"
    path.write_bytes(b"code")
    monkeypatch.setattr(torch_private, "libraries", lambda: frozenset([str(path)]))
    monkeypatch.setattr(library_cache, "_loaded", lambda code, name: lambda: code)
    assert library_cache.keep("0" * 32, frozenset(), lambda found: False) is None
    assert library_cache.keep("0" * 32, frozenset([str(path)]), lambda found: True) is None
    assert not list(own_cache.iterdir())
    assert library_cache.keep("0" * 32, frozenset(), lambda found: found() == b"code")() == b"code"
    assert len(list(own_cache.iterdir())) == 1


def test_names_differ_where_code_may(monkeypatch):
    names = {library_cache.name_of("forward"), library_cache.name_of("backward")}
    monkeypatch.setattr(torch, "__version__", "1.0")
    names.add(library_cache.name_of("forward"))
    monkeypatch.setattr(library_cache, "processor", lambda: ("another", frozenset()))
    names.add(library_cache.name_of("forward"))
    assert len(names) == 4


def test_a_torch_that_cannot_load_libraries_uses_its_own_cache(monkeypatch):
    monkeypatch.setattr(torch_private, "loads_libraries", lambda: False)
    monkeypatch.setattr(compiler, "_by_inductor", lambda key, settings: "by Inductor")
    assert library_cache.name_of("forward") is None
    assert compiler._compile(KEY) == "by Inductor"

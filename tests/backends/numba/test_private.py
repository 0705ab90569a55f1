"""Releases of numba and llvmlite that lack a private name which the Numba backend uses."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from rnnjit.codegen.host import host_isa
from rnnjit_numba import BACKEND, private
from rnnjit_numba.object_code import object_code

PACKAGE = Path(private.__file__).parent
OF_NUMBA = [path for path in private.NAMES if path.startswith("numba.")]
OF_LLVMLITE = [path for path in private.NAMES if path.startswith("llvmlite.")]
TEXT = "define i64 @twice(i64 %x) {\n %y = add i64 %x, %x\n ret i64 %y\n}\n"


@pytest.fixture
def remove(monkeypatch):
    """Makes a name be gone."""

    def without(path):
        present = private.find
        monkeypatch.setattr(private, "find", lambda each: None if each == path else present(each))

    return without


def test_every_name_is_there():
    assert [path for path in private.NAMES if private.find(path) is None] == []
    assert BACKEND.missing() == []


@pytest.mark.parametrize("path", OF_NUMBA)
def test_without_a_name_of_numbas_the_backend_is_missing_and_says_so(path, remove):
    __import__("numba")
    remove(path)
    (reason,) = BACKEND.missing()
    another = re.escape(f"install another of numba{private.RELEASES['numba']}")
    assert re.fullmatch(rf"numba \S+ lacks {re.escape(path)}, .*: {another}", reason)
    with pytest.raises(private.MissingNameError) as raised:
        getattr(private.NUMBA, path.rpartition(".")[2])
    assert str(raised.value) == reason


@pytest.mark.parametrize("path", OF_LLVMLITE)
def test_without_a_name_of_llvmlites_code_is_the_same(path, remove):
    expected = object_code(TEXT, host_isa(), ("twice",))
    remove(path)
    assert object_code(TEXT, host_isa(), ("twice",)) == expected
    assert BACKEND.missing() == []


GONE = """
import numba.core.compiler
del numba.core.compiler.Flags
import warnings
import torch, rnnjit
from rnnjit_numba import BACKEND
from rnnjit_numba.private import MissingNameError

rnn, x = torch.nn.RNN(3, 4), torch.randn(2, 5, 3)
(reason,) = BACKEND.missing()
assert "numba.core.compiler.Flags" in reason
try:
    rnnjit.compile(rnn, backend="numba")(x)
except rnnjit.UnsupportedError as error:
    assert reason in str(error)
else:
    raise AssertionError("it ran")
torch.testing.assert_close(rnnjit.compile(rnn)(x), rnn(x))
"""

LATE = """
import torch, rnnjit
from rnnjit_numba import BACKEND, private
present = private.find
private.find = lambda path: None if path.endswith("Flags") else present(path)
rnn, x = torch.nn.RNN(3, 4), torch.randn(2, 5, 3)
assert BACKEND.missing() == []  # numba is not imported yet
import warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    torch.testing.assert_close(rnnjit.compile(rnn)(x), rnn(x))
assert any("lacks numba.core.compiler.Flags" in str(each.message) for each in caught), caught
assert "Flags" in BACKEND.missing()[0]
"""


@pytest.mark.parametrize(
    "program",
    [
        pytest.param(GONE, id="from the start", marks=pytest.mark.full),
        pytest.param(LATE, id="when it compiles"),
    ],
)
def test_calls_in_a_process_without_a_name(program, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "RNNJIT_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_no_other_module_uses_a_private_name():
    internal = re.compile(r"numba\.(core|cpython)|ffi\.|LLVMPY_|\b_cfn\b")
    found = [
        f"{file.name}: {line.strip()}"
        for file in sorted(PACKAGE.glob("*.py"))
        if file.name != "private.py"
        for line in file.read_text().splitlines()
        if internal.search(line)
    ]
    assert found == []

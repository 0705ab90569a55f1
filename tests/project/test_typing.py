"""Protects rnnjit's types, as a client's type checkers read them: mypy and basedpyright."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from folders import ROOT

CLIENT = Path(__file__).parent / "typing_client"
CACHE = ROOT / "build" / "test-cache" / "mypy"
CHECKERS = {
    "mypy": ("mypy", "--strict", "--cache-dir", str(CACHE), "--config-file", ""),
    "pyright": ("basedpyright", "--level", "error", "--pythonpath", sys.executable),
}


@pytest.fixture(scope="module", params=["pyright", pytest.param("mypy", marks=pytest.mark.full)])
def complaints(request, tmp_path_factory):
    """Each file's lines that a checker complains of, as of a project with settings of its own."""
    place = tmp_path_factory.mktemp(request.param)
    names = ("client.py", "wrong.py")
    for name in names:
        (place / name).write_text((CLIENT / name).read_text())
    (place / "pyrightconfig.json").write_text('{"typeCheckingMode": "standard"}')
    command = [sys.executable, "-m", *CHECKERS[request.param], *names]
    done = subprocess.run(
        command, cwd=place, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 1, done.stdout + done.stderr
    return {
        name: {int(line) for line in re.findall(rf"{name}:(\d+)", done.stdout)} for name in names
    }


def test_a_client_s_types_are_known(complaints):
    assert complaints["client.py"] == set()


def test_mistakes_are_seen(complaints):
    lines = (CLIENT / "wrong.py").read_text().splitlines()
    expected = {number for number, line in enumerate(lines, 1) if line.endswith("# wrong")}
    assert complaints["wrong.py"] == expected

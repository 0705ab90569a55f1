"""Protects the example of words told apart, as a user runs it."""

import re
import subprocess
import sys

import pytest
from folders import ROOT

SCRIPT = ROOT / "examples" / "words.py"


def run(*flags):
    command = [sys.executable, "-W", "error", str(SCRIPT), *flags]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)


@pytest.mark.full
def test_both_trainings_agree_and_learn():
    done = run("--steps", "80")
    assert done.returncode == 0, done.stdout + done.stderr
    difference = re.search(r"largest difference: (\S+)", done.stdout)
    assert float(difference[1]) < 1e-2
    first, last = (
        re.search(rf"\n *{step}   (\S+)   +(\S+)", done.stdout).groups() for step in (1, 80)
    )
    assert max(map(float, last)) < min(map(float, first)) / 2
    scores = [float(found) for found in re.findall(r"F1 ([\d.]+)%", done.stdout)]
    assert len(scores) == 2
    assert min(scores) > 60
    read, written = done.stdout.rstrip("\n").rsplit("\n", 2)[-2:]
    assert written.replace(" ", "") == read
    assert " " in written.strip()


def test_senseless_arguments_are_refused():
    done = run("--steps", "0")
    assert done.returncode == 2
    assert "must be 1 or more" in done.stderr

"""Protects the example of truncated backpropagation, as a user runs it."""

import re
import subprocess
import sys

import pytest
from folders import ROOT

SCRIPT = ROOT / "examples" / "text.py"


def run(*flags):
    command = [sys.executable, "-W", "error", str(SCRIPT), *flags]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)


@pytest.mark.full
def test_both_trainings_agree_and_learn():
    done = run("--steps", "50", "--write", "30")
    assert done.returncode == 0, done.stdout + done.stderr
    difference = re.search(r"largest difference: (\S+) bits", done.stdout)
    assert float(difference[1]) < 1e-2
    entropy = re.search(r"frequencies alone: (\S+) bits", done.stdout)
    last = re.search(r"\n    50   (\S+)  ", done.stdout)
    assert 1 < float(last[1]) < float(entropy[1]) < 6
    assert len(done.stdout.split("compiled ")[-1].split("\n\n", 1)[1].rstrip("\n")) >= 20


def test_senseless_arguments_are_refused():
    done = run("--steps", "0")
    assert done.returncode == 2
    assert "must be 1 or more" in done.stderr

"""Protects the example of mixed precision, as a user runs it."""

import subprocess
import sys

import pytest
from folders import ROOT

SCRIPT = ROOT / "examples" / "autocast.py"


def run(*flags):
    command = [sys.executable, "-W", "error", str(SCRIPT), *flags]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)


@pytest.mark.full
def test_compiled_models_learn_as_much_as_eager_ones():
    done = run("--starts", "3", "--epochs", "5", "--steps", "30")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("compiled, autocast:") == 2


@pytest.mark.full
def test_senseless_arguments_are_refused():
    done = run("--starts", "1")
    assert done.returncode == 2
    assert "must be 2 or more" in done.stderr

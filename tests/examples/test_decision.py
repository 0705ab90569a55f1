"""Protects the example of a perceptual decision, as a user runs it."""

import re
import subprocess
import sys

import pytest
from folders import ROOT

SCRIPT = ROOT / "examples" / "decision.py"


def run(*flags):
    command = [sys.executable, "-W", "error", str(SCRIPT), *flags]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)


@pytest.mark.full
def test_both_trainings_agree_and_learn(tmp_path):
    done = run("--output", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    difference = re.search(r"largest difference of the losses: (\S+)", done.stdout)
    assert float(difference[1]) < 1e-3
    shares = re.findall(r"(?m)^ +(\d+)% +([\d.]+)% +([\d.]+)%$", done.stdout)
    assert [share[0] for share in shares] == ["2", "4", "8", "16", "32"]
    for column in (1, 2):
        found = [float(share[column]) for share in shares]
        assert found[-1] > 95
        assert found[0] < 75  # weak evidence is hard: the noise hides it
    assert re.search(r"speed-up: [\d.]+x", done.stdout)
    assert (tmp_path / "decision.png").read_bytes().startswith(b"\x89PNG")


def test_a_short_run_has_the_same_losses(tmp_path):
    done = run("--steps", "3", "--neurons", "10", "--output", str(tmp_path))
    assert done.returncode == 1, done.stderr  # nothing is learnt in three steps
    rows = re.findall(r"(?m)^ +\d   +(\S+)   +(\S+)$", done.stdout)
    assert len(rows) == 3
    for eager, compiled in rows:
        assert float(eager) == pytest.approx(float(compiled), abs=2e-6)


def test_senseless_arguments_are_refused():
    done = run("--steps", "0")
    assert done.returncode == 2
    assert "must be 1 or more" in done.stderr

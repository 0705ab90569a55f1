"""Protects the example of an int8 stream, as a user runs it."""

import re
import subprocess
import sys

import pytest
from folders import ROOT

SCRIPT = ROOT / "examples" / "quantized_streaming.py"


def run(*flags):
    command = [sys.executable, "-W", "error", str(SCRIPT), *flags]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)


@pytest.mark.full
def test_int8_reads_as_well_as_float32_from_a_quarter_of_the_bytes():
    done = run("--steps", "100", "--read", "1000", "--hidden-size", "128")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = re.findall(r"([\d.]+)% of 1000 letters right, ([\d,]+) bytes", done.stdout)
    (float_share, float_bytes), (int8_share, int8_bytes) = rows
    assert abs(float(float_share) - float(int8_share)) < 1
    # [384, 32] and [384, 128], a scale and a sum for each row, and two biases.
    assert int(float_bytes.replace(",", "")) == 4 * 384 * (32 + 128 + 2)
    assert int(int8_bytes.replace(",", "")) == 384 * (32 + 128) + 4 * 384 * (2 + 2 + 2)
    equal = re.search(r"equal predictions: ([\d.]+)%", done.stdout)
    assert 95 < float(equal[1]) <= 100


def test_senseless_arguments_are_refused():
    done = run("--read", "0")
    assert done.returncode == 2
    assert "must be 1 or more" in done.stderr

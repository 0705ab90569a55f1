"""Protects against leaks: calls of any shape leave nothing behind."""

import subprocess
import sys

import pytest
import torch
from folders import SUPPORT
from torch import nn

import rnnjit

CALLS = 20_000
#: After these, caches that are bounded have been full and more.
WARM = 8_000
#: Bytes by which the heap may grow by chance: 42 for each call after those.
ALLOWED = 500_000


@pytest.mark.full
@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from Linux's /proc")
def test_twenty_thousand_calls_of_changing_shapes_hold_no_more_memory():
    # Compiled here and kept on disk: memory that a compiler gave back would hide what leaks.
    rnnjit.compile(nn.RNN(1, 1), backend="numba")(torch.zeros(1, 1, 1))
    done = subprocess.run(
        [sys.executable, str(SUPPORT / "soak.py"), "numba", str(CALLS)],
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    held = dict(map(int, line.split()) for line in done.stdout.splitlines())
    assert held[CALLS] - held[WARM] < ALLOWED, done.stdout

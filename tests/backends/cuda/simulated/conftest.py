"""Tests that run CUDA kernels in numba's simulator, a mode that holds for the whole process.

NUMBA_ENABLE_CUDASIM=1 python -m pytest tests/backends/cuda/simulated
"""

from __future__ import annotations

import os

import pytest

if os.environ.get("NUMBA_ENABLE_CUDASIM") != "1":
    collect_ignore_glob = ["*"]


@pytest.fixture(scope="session", autouse=True)
def simulator():
    """Launches go to the simulator of whole grids."""
    from cuda_simulator import installed

    with installed(seed=1):
        yield

"""Tests that run CUDA kernels in numba's simulator, a mode that holds for the whole process.

NUMBA_ENABLE_CUDASIM=1 python -m pytest tests/backends/cuda/simulated
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items):
    if os.environ.get("NUMBA_ENABLE_CUDASIM") == "1":
        return
    skipped = pytest.mark.skip(reason="needs NUMBA_ENABLE_CUDASIM=1 and a process of its own")
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(skipped)


@pytest.fixture(scope="session", autouse=True)
def simulator():
    """Launches go to the simulator of whole grids."""
    from cuda_simulator import installed

    with installed(seed=1):
        yield

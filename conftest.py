"""Tests keep what they compile apart from what the user does, from one run to the next."""

import os
import signal
import time
from pathlib import Path

# Two processes of tests share the cores. A team of threads that spins at the end of a parallel
# region keeps the other process from running. OpenMP reads this once, as torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from rnnjit.runtime.object_cache import DIRECTORY_VARIABLE

_SECONDS_KEPT = 7 * 24 * 3600


def pytest_configure(config):
    if not hasattr(config, "workerinput"):  # workers of pytest-xdist have the environment
        cache = config.rootpath / "build" / "test-cache"
        _prepare(cache)
        os.environ[DIRECTORY_VARIABLE] = str(cache)
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(cache / "inductor")
    # A shell has Ctrl-C ignored by what it runs in the background, and so by all that it starts.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _prepare(cache: Path) -> None:
    """Keep object code, which its sources' digest names; no measurement, and nothing old."""
    cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    for file in cache.iterdir():
        old = file.stat().st_mtime < time.time() - _SECONDS_KEPT
        if file.is_file() and (old or file.suffix == ".tuned"):
            file.unlink()

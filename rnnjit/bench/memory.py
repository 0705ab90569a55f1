"""Measures the memory growth of this process during a call."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from pathlib import Path

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def growth(make: Callable[[], Callable[[], object]]) -> int | None:
    """Measure the peak memory during a call, in bytes above the memory before its preparation.

    Args:
        make: prepares the call, runs it once, and returns it.

    Returns:
        The growth, at least 0, or None if the system does not tell it (only Linux does).
    """
    if not _STATUS.exists():
        return None
    _trim_heap()
    before = _kilobytes("VmRSS")
    call = make()
    try:
        _RESET.write_text("5")  # resets the peak, since the first call may have compiled
    except OSError:
        return None
    call()
    peak = _kilobytes("VmHWM")
    return max(0, peak - before) * 1024


def _trim_heap() -> None:
    """Return free memory that the C library still holds to the system, if it supports that."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _kilobytes(field: str) -> int:
    lines = _STATUS.read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))

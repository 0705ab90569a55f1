"""By how much this process grows while something is done."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from pathlib import Path

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def growth(make: Callable[[], Callable[[], object]]) -> int | None:
    """Bytes that this process is larger by at most, during a call, than before all was made ready.

    Args:
        make: makes all ready, its first call done, and gives the call.

    Returns:
        The growth, never below 0, or None where the system does not tell (only Linux does).
    """
    if not _STATUS.exists():
        return None
    _trim_heap()
    before = _kilobytes("VmRSS")
    call = make()
    try:
        _RESET.write_text("5")  # the peak so far is forgotten: the first call may have compiled
    except OSError:
        return None
    call()
    peak = _kilobytes("VmHWM")
    return max(0, peak - before) * 1024


def _trim_heap() -> None:
    """What is free but still held by the C library goes back to the system, where it can."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _kilobytes(field: str) -> int:
    lines = _STATUS.read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))

"""The most memory that a call takes beyond what there is before it."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path

from measures.fresh import watch

_RESET = Path("/proc/self/clear_refs")


def peak_growth(call: Callable[[], object]) -> int | None:
    """Bytes by which the process's resident memory grows at most during `call`.

    It is exact to some dozen pages: 0 is next to nothing. None where the system cannot tell (only
    Linux forgets an earlier peak).
    """
    if not _RESET.exists():
        return None
    _give_back()
    before, peak = watch()
    call()
    return max(0, peak() - before)


def _give_back() -> None:
    """Let the allocator return what is free, which a call would otherwise fill unseen."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's alone
    if trim is not None:
        trim(0)

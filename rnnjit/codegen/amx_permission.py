"""The operating system's permission to use the tile registers of Intel's AMX.

Linux saves these large registers only for processes that asked for it, once, for all of their
threads and for the children that they fork. (Linux kernel documentation, "Using XSTATE features in
user space applications".)
"""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from functools import cache

#: The number of the system call arch_prctl on x86-64, its request, and the registers' number.
_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XFEATURE_XTILEDATA = 158, 0x1023, 18


@cache
def refused() -> str:
    """Ask for the permission; why there is none, or "" if there is."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return f"rnnjit asks no permission for AMX on {sys.platform} {platform.machine()}"
    library = ctypes.CDLL(None, use_errno=True)
    number, *values = map(ctypes.c_long, (_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XFEATURE_XTILEDATA))
    if library.syscall(number, *values) == 0:
        return ""
    return f"the system refuses its tile registers: {os.strerror(ctypes.get_errno())}"

"""What Inductor needs on this machine, found out without importing it."""

from __future__ import annotations

import os
import shutil
import sys
from functools import cache
from importlib.util import find_spec


@cache
def unsupported() -> list[str]:
    """Why torch's compiler does not run on this Python at all; empty if it does."""
    # Imported with rnnjit already, which traces into graphs.
    from torch._dynamo.eval_frame import check_if_dynamo_supported

    try:
        check_if_dynamo_supported()
    except RuntimeError as error:
        return [f"torch's compiler does not run here: {error}"]
    return []


def lacking(device: str) -> list[str]:
    """What Inductor needs for a device and does not find; empty if there is nothing."""
    if device != "cpu":
        if find_spec("triton") is None:
            return [f"Inductor needs triton for {device}, which cannot be imported: install triton"]
        return []
    names = _compilers()
    if any(shutil.which(name) for name in names):
        return []
    return [
        f"Inductor needs a C++ compiler, and {' or '.join(names)} is not on PATH: install one, or "
        "name one in the environment variable CXX"
    ]


def _compilers() -> list[str]:
    """The C++ compilers that Inductor tries."""
    config = sys.modules.get("torch._inductor.config")
    if config is not None:
        names = config.cpp.cxx if isinstance(config.cpp.cxx, (list, tuple)) else [config.cpp.cxx]
        return [name for name in names if name is not None]
    default = {"win32": "cl", "darwin": "clang++"}.get(sys.platform, "g++")
    return [os.environ.get("CXX", default)]

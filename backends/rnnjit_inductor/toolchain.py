"""What Inductor needs on this machine, found out without compiling anything."""

from __future__ import annotations

import os
import shutil
import sys
from functools import cache
from importlib.util import find_spec

import torch

from rnnjit.runtime import torch_private


@cache
def unsupported() -> list[str]:
    """Why Inductor does not run on this Python and torch at all; empty if it does."""
    reason = torch_private.compiler_unsupported()
    if reason:
        return [f"torch's compiler does not run here: {reason}"]
    names = torch_private.lacking_for_inductor()
    if names:
        return [f"torch {torch.__version__} lacks {', '.join(names)}: install another version"]
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
    found = torch_private.cpp_compilers()
    if found is not None:
        return found
    default = {"win32": "cl", "darwin": "clang++"}.get(sys.platform, "g++")
    return [os.environ.get("CXX", default)]

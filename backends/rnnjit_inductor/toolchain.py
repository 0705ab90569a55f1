"""What Inductor needs on this machine, found out without compiling anything."""

from __future__ import annotations

import logging
import os
import shutil
import sys
from functools import cache
from importlib import import_module
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
    names = tuple(_compilers())
    if _on_path(names, os.environ.get("PATH")):
        return []
    return [
        f"Inductor needs a C++ compiler, and {' or '.join(names)} is not on PATH: install one, or "
        "name one in the environment variable CXX"
    ]


@cache
def _on_path(names: tuple[str, ...], path: str | None) -> bool:
    """Whether one of some programs is there; asked once, since every kind of call asks."""
    return any(shutil.which(name, path=path) for name in names)


def import_paths_quietly() -> None:
    """Import the module of torch that knows where its headers are, before Inductor does.

    On a machine with a CUDA toolkit and no GPU, it logs as it is imported that no CUDA runtime is
    found. Inductor imports it to compile for the CPU, too, where there is nothing to be done.
    """
    name = "torch.utils.cpp_extension"
    logger = logging.getLogger(name)
    logger.addFilter(_nothing)
    try:
        import_module(name)
    finally:
        logger.removeFilter(_nothing)


def _nothing(record: logging.LogRecord) -> bool:
    """A filter that passes no record on."""
    return False


def _compilers() -> list[str]:
    """The C++ compilers that Inductor tries."""
    found = torch_private.cpp_compilers()
    if found is not None:
        return found
    default = {"win32": "cl", "darwin": "clang++"}.get(sys.platform, "g++")
    return [os.environ.get("CXX", default)]

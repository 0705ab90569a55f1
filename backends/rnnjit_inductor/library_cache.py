"""Chunks for the CPU that earlier processes compiled, in rnnjit's cache of compiled code.

Inductor has a cache of its own, but to ask it takes importing the compiler and tracing the chunk
anew: seconds. Here a chunk is found by its `Key`, as the shared library that Inductor made of it,
and run without Inductor.
"""

from __future__ import annotations

import os
import platform
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

import rnnjit.ir
import rnnjit.recurrence
from rnnjit.runtime import object_cache, torch_private
from rnnjit.runtime.host import processor

_KIND = "inductor"


def name_of(*facts: object) -> str | None:
    """The name under which a chunk is kept; None if chunks cannot be kept.

    Args:
        *facts: what the chunk's code depends on besides this machine, torch, and our sources.
    """
    if not torch_private.loads_libraries():
        return None
    model, flags = processor()
    compilers = torch.__version__, torch.version.git_version, os.environ.get("CXX")
    machine = platform.machine(), model, sorted(flags)
    return object_cache.name_of(
        *(_KIND, machine, compilers, *facts),
        files=[__file__, rnnjit.ir.__file__, rnnjit.recurrence.__file__],
    )


def load(name: str) -> Callable[..., Any] | None:
    """A chunk that is kept, as a function of tensors; or None."""
    code = object_cache.fetch(name, _KIND)
    return None if code is None else _loaded(code, name)


def keep(name: str, before: frozenset[str], works: Callable[[Callable[..., Any]], bool]) -> Any:
    """Keep the chunk that was compiled last, and return it as `load` does; None if it cannot be.

    Args:
        name: as `name_of` gives it.
        before: the libraries that there were before it was compiled.
        works: whether a function does what the chunk does.
    """
    new = torch_private.libraries() - before
    if len(new) != 1:
        return None
    with suppress(OSError):
        code = Path(*new).read_bytes()
        found = _loaded(code, name)
        if found is not None and works(found):
            object_cache.keep(name, code, _KIND)
            return found
    return None


def _loaded(code: bytes, name: str) -> Callable[..., Any] | None:
    """A library as a function; None if this machine does not load it."""
    try:
        with tempfile.TemporaryDirectory(prefix="rnnjit-") as folder:
            path = Path(folder, f"{name}.so")
            path.write_bytes(code)
            return torch_private.load_library(str(path), f"rnnjit_inductor.chunk_{name}")
    except (ImportError, OSError, AttributeError):
        return None

"""Object code on disk, so that a process compiles what no process has compiled before.

Cached files are executable content: they live in a directory of the user's own (mode 0700), which
is not used when others can write to it. A file is believed only if its checksum fits.
"""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
import warnings
from collections.abc import Iterable
from pathlib import Path

import platformdirs

DIRECTORY_VARIABLE = "RNNJIT_CACHE_DIR"
_CHECKSUM_BYTES = 32


def directory() -> Path:
    """Where object code is cached: RNNJIT_CACHE_DIR, or the platform's cache directory."""
    chosen = os.environ.get(DIRECTORY_VARIABLE)
    return Path(chosen) if chosen else Path(platformdirs.user_cache_dir("rnnjit"))


def name_of(*facts: object, files: Iterable[str]) -> str:
    """The key of object code that depends on some facts and on source files.

    Args:
        *facts: the target, versions of compilers, and the like, by their representations.
        files: one file of each package whose sources all take part.
    """
    digest = hashlib.sha256(repr(facts).encode())
    for file in files:
        for source in sorted(Path(file).parent.glob("*.py")):
            digest.update(source.read_bytes())
    return digest.hexdigest()[:32]


def fetch(key: str, kind: str = "o") -> bytes | None:
    """The object code, or data of another kind, that is kept under a key; or None."""
    try:
        if _unsafe(directory()):
            return None
        content = (directory() / f"{key}.{kind}").read_bytes()
    except OSError:
        return None
    checksum, code = content[:_CHECKSUM_BYTES], content[_CHECKSUM_BYTES:]
    return code if hashlib.sha256(code).digest() == checksum else None


def keep(key: str, code: bytes, kind: str = "o") -> None:
    """Keep object code, or other data, under a key; a warning, no more, where that cannot be."""
    place = directory()
    try:
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        if _unsafe(place):
            warnings.warn(
                f"{place} can be written to by others, so that compiled kernels are not cached: "
                f"run chmod 700 on it, or set {DIRECTORY_VARIABLE}",
                stacklevel=2,
            )
            return
        handle, name = tempfile.mkstemp(dir=place, suffix=".tmp")
        with os.fdopen(handle, "wb") as file:
            file.write(hashlib.sha256(code).digest() + code)
        Path(name).replace(place / f"{key}.{kind}")
    except OSError as error:
        warnings.warn(
            f"compiled kernels cannot be cached in {place} ({error}): set "
            f"{DIRECTORY_VARIABLE} to a directory that can be written to",
            stacklevel=2,
        )


def _unsafe(place: Path) -> bool:
    """Whether somebody else could have put a file there."""
    if not hasattr(os, "getuid"):
        return False
    status = place.stat()
    return status.st_uid != os.getuid() or bool(status.st_mode & (stat.S_IWGRP | stat.S_IWOTH))

"""Object code on disk, so that a process compiles what no process has compiled before.

Cached files are executable content: they live in a directory of the user's own (mode 0700), which
is not used when others can write to it. A file is believed only if its checksum fits. What cannot
be read is compiled anew, and what cannot be kept costs a warning, once.

The directory is bounded: what keeps a file removes those that were used least recently. Other
processes may read and write meanwhile. One that finds a file gone compiles anew; a file that is
open is read to its end.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
import time
import warnings
from collections.abc import Iterable
from pathlib import Path

import platformdirs

from rnnjit.errors import RNNJitWarning
from rnnjit.runtime.compile_once import once_compiled
from rnnjit.runtime.private_directory import Entry, NotOwnError, PrivateDirectory

DIRECTORY_VARIABLE = "RNNJIT_CACHE_DIR"
BOUND_VARIABLE = "RNNJIT_CACHE_MB"
_MEGABYTES = 500
#: Seconds after which a draft was left behind by a process that was killed: none is written longer.
_DRAFT_SECONDS = 3600
_CHECKSUM_BYTES = 32
#: Names of files that are kept, and of their drafts.
_OURS = re.compile(r"[0-9a-f]{32}\.[a-z]+(\.[0-9a-f]+\.tmp)?")
#: Directories, and the variable for the bound, that a warning was given about.
_COMPLAINED: dict[str, object] = {}


def directory() -> Path:
    """Where object code is cached: RNNJIT_CACHE_DIR, or the platform's cache directory.

    A leading `~` is the home directory: no shell has expanded it where a file sets the variable.

    Raises:
        OSError: it is not known, since there is no home directory.
    """
    chosen = os.environ.get(DIRECTORY_VARIABLE)
    try:
        if chosen:
            return Path(chosen).expanduser()
        place = Path(platformdirs.user_cache_dir("rnnjit"))
    except RuntimeError as error:
        raise OSError(str(error)) from None
    if not place.is_absolute():
        raise OSError(f"{str(place)!r} is no absolute path: is there a home directory?")
    return place


def bound() -> int:
    """The most bytes that are kept: RNNJIT_CACHE_MB in units of 10^6, or 500 MB.

    Raises:
        ValueError: the variable is not a whole number from 0 on.
    """
    given = os.environ.get(BOUND_VARIABLE, "").strip() or str(_MEGABYTES)
    if not (given.isascii() and given.isdigit()):
        raise ValueError(f"{BOUND_VARIABLE} must be a whole number of megabytes, got {given!r}")
    return int(given) * 10**6


def name_of(*facts: object, files: Iterable[str]) -> str:
    """The key of object code that depends on some facts and on source files.

    Any release of Python may have a bytecode of its own, which numba compiles: it takes part.

    Args:
        *facts: the target, versions of compilers, and the like, by their representations.
        files: one file of each package whose sources all take part.
    """
    digest = hashlib.sha256(repr((sys.implementation.cache_tag, facts)).encode())
    for file in files:
        for source in sorted(Path(file).parent.glob("*.py")):
            digest.update(source.read_bytes())
    return digest.hexdigest()[:32]


def fetch(key: str, kind: str = "o") -> bytes | None:
    """The object code, or data of another kind, that is kept under a key; or None."""
    try:
        with PrivateDirectory(directory()) as folder:
            content = folder.read(f"{key}.{kind}")
    except NotOwnError as error:
        _complain(error)
        return None
    except OSError:
        return None
    checksum, code = content[:_CHECKSUM_BYTES], content[_CHECKSUM_BYTES:]
    return code if _checksum(key, kind, code) == checksum else None


def keys(kind: str) -> frozenset[str]:
    """The keys under which something of a kind is kept; what it is may not be believed."""
    try:
        with PrivateDirectory(directory()) as folder:
            names = folder.names()
    except NotOwnError as error:
        _complain(error)
        return frozenset()
    except OSError:
        return frozenset()
    return frozenset(name.removesuffix(f".{kind}") for name in names if name.endswith(f".{kind}"))


def keep(key: str, code: bytes, kind: str = "o") -> None:
    """Keep object code, or other data, under a key; a warning, no more, where that cannot be."""
    try:
        place = directory()
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        with PrivateDirectory(place) as folder:
            folder.write(f"{key}.{kind}", _checksum(key, kind, code) + code)
            _prune(folder)
    except OSError as error:
        _complain(error)


def _prune(folder: PrivateDirectory) -> None:
    """Remove what was used least recently, and old drafts, until the directory is in its bounds."""
    try:
        most = bound()
    except ValueError as error:
        _warn_once(BOUND_VARIABLE, f"{error}; up to {_MEGABYTES} MB are kept")
        most = _MEGABYTES * 10**6
    oldest_draft = time.time_ns() - _DRAFT_SECONDS * 10**9
    total = 0
    for entry in sorted(_ours(folder), key=lambda entry: entry.used, reverse=True):
        draft = entry.name.endswith(".tmp")
        total += entry.size
        if entry.used < oldest_draft if draft else total > most:
            folder.remove(entry.name)


def kept() -> list[Entry]:
    """What the directory holds of ours, drafts that were left behind included.

    Raises:
        OSError: as `PrivateDirectory` does; FileNotFoundError if nothing was ever kept.
    """
    with PrivateDirectory(directory()) as folder:
        return _ours(folder)


def clear() -> list[Entry]:
    """Remove what `kept` lists, and nothing else; it returns what was removed.

    Raises:
        OSError: as for `kept`, or a file cannot be removed.
    """
    with PrivateDirectory(directory()) as folder:
        found = _ours(folder)
        for entry in found:
            folder.remove(entry.name)
    return found


def _ours(folder: PrivateDirectory) -> list[Entry]:
    return [entry for entry in folder.files() if _OURS.fullmatch(entry.name)]


def _checksum(key: str, kind: str, code: bytes) -> bytes:
    """Of what is kept and of its name, since one file may be copied over another."""
    return hashlib.sha256(f"{key}.{kind}\0".encode() + code).digest()


def _complain(error: OSError) -> None:
    """Warn that there is no cache, once for a directory, however often it is tried."""
    try:
        place = str(directory())
    except OSError:
        place = "the user's cache directory"
    _warn_once(
        place,
        f"compiled kernels and measurements cannot be cached in {place} "
        f"({error.strerror or error}): set {DIRECTORY_VARIABLE} to a directory of your own",
    )


def _warn_once(about: str, message: str) -> None:
    mine = object()
    if _COMPLAINED.setdefault(about, mine) is mine:
        # Where warnings are errors, it must not end the compilation whose result cannot be cached.
        once_compiled(lambda: warnings.warn(message, RNNJitWarning, stacklevel=4))

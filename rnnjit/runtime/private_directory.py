"""A directory that only its owner can write to, so that its files can be trusted."""

from __future__ import annotations

import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

#: Whether files can be opened relative to a directory handle; not on Windows, without checks.
_BY_HANDLE = {os.open, os.rename, os.stat, os.unlink} <= os.supports_dir_fd
#: Do not follow symbolic links, and do not block on pipes.
_FLAGS = (
    getattr(os, "O_NOFOLLOW", 0)
    | getattr(os, "O_NONBLOCK", 0)
    | getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_BINARY", 0)
)


class NotOwnError(OSError):
    """Another user could have written the file or directory; the message says why."""


class Entry(NamedTuple):
    """A file of a directory.

    Attributes:
        name: its name.
        size: its size in bytes.
        used: when it was written or `read` last, in nanoseconds since 1970.
    """

    name: str
    size: int
    used: int


class PrivateDirectory:
    """An open directory that this user owns and that nobody else can write to.

    Files are opened relative to the handle that was checked, even if the path now leads to another
    directory. So it does not matter who can write to the parent directories.

    Args:
        path: of the directory; symbolic links in it are followed.

    Raises:
        NotOwnError: it belongs to another user, or others can write to it.
        OSError: it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._handle: int | None = None
        if _BY_HANDLE:
            self._handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            _require_own(os.stat(path if self._handle is None else self._handle))
        except OSError:
            self._close()
            raise

    def __enter__(self) -> PrivateDirectory:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._close()

    def read(self, name: str) -> bytes:
        """Read a file, and note that it is used.

        Raises:
            NotOwnError: it belongs to another user, or others can write to it.
            OSError: it is not a regular file, or cannot be read.
        """
        handle = os.open(self._at(name), os.O_RDONLY | _FLAGS, dir_fd=self._handle)
        with os.fdopen(handle, "rb") as file:
            status = os.fstat(handle)
            if not stat.S_ISREG(status.st_mode):
                raise OSError(f"{name} is not a regular file")
            _require_own(status)
            with suppress(OSError):  # a file system that cannot be written to
                os.utime(handle if os.utime in os.supports_fd else self._at(name))
            return file.read()

    def write(self, name: str, content: bytes) -> None:
        """Create or replace a file atomically: readers see all of it or nothing.

        Raises:
            OSError: it cannot be written; nothing is left behind.
        """
        draft = f"{name}.{secrets.token_hex(8)}.tmp"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _FLAGS
        handle = os.open(self._at(draft), flags, 0o600, dir_fd=self._handle)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
            os.replace(
                self._at(draft),
                self._at(name),
                src_dir_fd=self._handle,
                dst_dir_fd=self._handle,
            )
        except BaseException:
            self.remove(draft)
            raise

    def names(self) -> list[str]:
        """The names of all that is in it, sorted.

        Raises:
            OSError: it cannot be listed.
        """
        return sorted(os.listdir(self._path if self._handle is None else self._handle))

    def files(self) -> list[Entry]:
        """All regular files, sorted by name; no links, no directories."""
        found = []
        for name in self.names():
            try:
                status = os.stat(self._at(name), dir_fd=self._handle, follow_symlinks=False)
            except FileNotFoundError:
                continue  # removed meanwhile
            if stat.S_ISREG(status.st_mode):
                found.append(Entry(name, status.st_size, status.st_mtime_ns))
        return found

    def remove(self, name: str) -> None:
        """Remove a file; nothing happens if there is none.

        Raises:
            OSError: it cannot be removed.
        """
        with suppress(FileNotFoundError):
            os.unlink(self._at(name), dir_fd=self._handle)

    def _at(self, name: str) -> str:
        return str(self._path / name) if self._handle is None else name

    def _close(self) -> None:
        if self._handle is not None:
            os.close(self._handle)


def _require_own(status: os.stat_result) -> None:
    if not hasattr(os, "geteuid"):
        return
    if status.st_uid != os.geteuid():
        raise NotOwnError("it belongs to another user")
    if status.st_mode & stat.S_ISVTX and status.st_mode & stat.S_IWOTH:
        raise NotOwnError("everybody can write to it")  # and is meant to, as to /tmp
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise NotOwnError("others can write to it: run chmod 700 on it")

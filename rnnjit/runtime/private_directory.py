"""A directory of the user's own, none of whose files anybody else can have put there."""

from __future__ import annotations

import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

#: Without these a path is followed anew for every file: Windows, where nothing is checked either.
_BY_HANDLE = {os.open, os.rename, os.stat, os.unlink} <= os.supports_dir_fd
#: Of a link nothing is read, and no pipe is waited for.
_FLAGS = (
    getattr(os, "O_NOFOLLOW", 0)
    | getattr(os, "O_NONBLOCK", 0)
    | getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_BINARY", 0)
)


class NotOwnError(OSError):
    """Somebody else could have put something there; the message says why, and what helps."""


class Entry(NamedTuple):
    """A file of a folder: its name, and its size in bytes."""

    name: str
    size: int


class PrivateDirectory:
    """An open directory that belongs to this user and that nobody else can write to.

    What is checked is what is used: files are opened in the directory that was looked at, even if
    its path leads elsewhere by now. So it does not matter who can write to the directories above.

    Args:
        path: of the directory; symbolic links on the way are followed.

    Raises:
        NotOwnError: it is another user's, or others can write to it.
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
        """The content of a file.

        Raises:
            NotOwnError: it is another user's, or others can write to it.
            OSError: it is no file, or cannot be read.
        """
        handle = os.open(self._at(name), os.O_RDONLY | _FLAGS, dir_fd=self._handle)
        with os.fdopen(handle, "rb") as file:
            status = os.fstat(handle)
            if not stat.S_ISREG(status.st_mode):
                raise OSError(f"{name} is no file")
            _require_own(status)
            return file.read()

    def write(self, name: str, content: bytes) -> None:
        """Make or replace a file, at once: others see the whole of it or nothing.

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

    def files(self) -> list[Entry]:
        """All files, by name; no links, no directories."""
        found = []
        for name in sorted(os.listdir(self._path if self._handle is None else self._handle)):
            try:
                status = os.stat(self._at(name), dir_fd=self._handle, follow_symlinks=False)
            except FileNotFoundError:
                continue  # removed meanwhile
            if stat.S_ISREG(status.st_mode):
                found.append(Entry(name, status.st_size))
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

"""A small file that a driver keeps what it must know in, so that a later process finds it.

Written whole and durably: a new file, renamed over the old one. The lock, flock(2) on the
directory, is held by whoever changes what the file is about and is gone with that process.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Generic, TypeVar

import msgspec

from splitmirror.errors import Busy, MirrorError

Record = TypeVar("Record")


class StateFile(Generic[Record]):
    """A record of one type as JSON at `path`; `on_damage` is the hint for a file that cannot be
    read."""

    def __init__(self, path: Path, record: type[Record], on_damage: str) -> None:
        self._path = path
        self._record = record
        self._on_damage = on_damage

    def read(self) -> Record | None:
        """The record; None when there is none. Raises MirrorError when it is damaged."""
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=self._record)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, msgspec.DecodeError) as error:
            raise MirrorError(
                f"{self._path} cannot be read: {error}", hint=self._on_damage
            ) from error

    def save(self, record: Record) -> None:
        """Make the record durable, in a directory that is made if need be. Raises MirrorError."""
        fresh = self._path.with_suffix(".new")
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with fresh.open("wb") as file:
                file.write(msgspec.json.encode(record))
                os.fsync(file.fileno())
            fresh.replace(self._path)
            self._sync_directory()
        except OSError as error:
            raise MirrorError(
                f"{self._path} cannot be written: {error.strerror}",
                hint="Look at the room and the rights of its directory.",
            ) from error

    def remove(self) -> None:
        """There is nothing to know any more. A second call is harmless."""
        self._path.unlink(missing_ok=True)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from changing the mirror. The directory, which is what is locked,
        must be there. Raises Busy."""
        fd = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self._lock(fd)
            yield
        finally:
            os.close(fd)

    @staticmethod
    def _lock(fd: int) -> None:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Busy(
                "another splitmirror process works on this mirror", hint="Wait for it to end."
            ) from None

    def _sync_directory(self) -> None:
        fd = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

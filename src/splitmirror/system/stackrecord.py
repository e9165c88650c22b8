"""What stands in a stack's state.json, so that a later process finds what an earlier one began.

Written durably and whole (a new file renamed over the old one). The lock, flock(2) on the
directory, is held by whoever changes the mirror and is gone with that process.
"""

from __future__ import annotations

import enum
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import msgspec

from splitmirror.errors import Busy, MirrorError
from splitmirror.model import Session, Volume


class SyncKind(enum.StrEnum):
    """Whether everything was copied, or what had changed."""

    FULL = "full"
    INCREMENTAL = "incremental"


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncReport:
    """What a synchronization did. `bytes` are those that were copied, `passes` the rounds of the
    bitmap (the full copy not counted)."""

    kind: SyncKind
    bytes: int
    passes: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class EndedSplit:
    """A split whose copies have ended; `problem` is empty when they are complete."""

    split_id: str
    problem: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class StackRecord:
    """A daemon and what is known of its disks.

    `instance` is random, and part of the bitmaps' name. `daemon` is None and `volumes` empty until
    they serve. `established`: everything was copied once since this daemon began.
    """

    instance: str
    attached_at: datetime
    daemon: Session | None = None
    aio: str = ""
    volumes: tuple[Volume, ...] = ()
    established: bool = False
    split: EndedSplit | None = None
    last_sync: SyncReport | None = None

    @property
    def bitmap(self) -> str:
        return f"sm-{self.instance}"

    def size(self, name: str) -> int:
        """The size of a volume."""
        return next(volume.size for volume in self.volumes if volume.name == name)


class RecordFile:
    """state.json in a directory, and the lock on that directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._path = directory / "state.json"

    def read(self) -> StackRecord | None:
        """The record; None when nothing is attached. Raises MirrorError when it is damaged."""
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=StackRecord)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, msgspec.DecodeError) as error:
            raise MirrorError(
                f"{self._path} cannot be read: {error}",
                hint="Unmount the mirror's disks, delete that file, and attach the mirror again.",
            ) from error

    def save(self, record: StackRecord) -> None:
        """Make the record durable. Raises MirrorError."""
        fresh = self._path.with_suffix(".new")
        try:
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
        """Nothing is attached any more. A second call is harmless."""
        self._path.unlink(missing_ok=True)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from changing the mirror. The directory, which is what is locked,
        must be there. Raises Busy."""
        fd = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
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
        fd = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

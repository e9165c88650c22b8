"""What LVM's metadata does not know of a split: a small durable file, written before the freeze.

It says what is intended; whether it has come about is asked of the kernel. So the file may be there
without a split, never a split of ours without the file.
"""

from __future__ import annotations

import enum
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from splitmirror.errors import MirrorError


class Way(enum.StrEnum):
    """How legs are parted."""

    LVCONVERT = "lvconvert"
    DEVICE_MAPPER = "device-mapper"


@dataclass(frozen=True, slots=True, kw_only=True)
class PartedVolume:
    """A volume and the image that is its leg. `uuid` and `image_uuid` are device-mapper's: they
    tell a device from a later one of its name. `events`: the leg's superblock when it was first
    looked at; it is written to only when the image is put back."""

    name: str
    path: str
    uuid: str
    size: int
    position: int
    image: str
    image_path: str
    image_uuid: str
    meta_path: str
    pvs: tuple[str, ...]
    events: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PartedRecord:
    """A split that was intended. `boot`: in which run of the kernel (process.boot_id)."""

    split_id: str
    way: Way
    boot: str
    volumes: tuple[PartedVolume, ...]


class PartedFile:
    """The record of a mirror of these volumes, in the state directory."""

    def __init__(self, directory: Path, volumes: Sequence[str]) -> None:
        digest = hashlib.sha256("\n".join(sorted(volumes)).encode()).hexdigest()[:12]
        self._path = directory / f"lvm-{digest}.json"

    def read(self) -> PartedRecord | None:
        """The record; None when there is none. Raises MirrorError when it is damaged."""
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=PartedRecord)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, msgspec.DecodeError) as error:
            raise MirrorError(
                f"{self._path} cannot be read: {error}",
                hint="Delete it and run `splitmirror resync`: a leg that is parted joins again.",
            ) from error

    def save(self, record: PartedRecord) -> None:
        """Make the record durable. Raises MirrorError."""
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
        """The split is over. A second call is harmless."""
        self._path.unlink(missing_ok=True)

    def _sync_directory(self) -> None:
        fd = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

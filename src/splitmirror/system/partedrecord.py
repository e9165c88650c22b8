"""What LVM's metadata does not know of a split: a small durable file, written before the freeze.

It says what is intended; whether it has come about is asked of the kernel. So the file may be there
without a split, never a split of ours without the file.
"""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from splitmirror.system.statefile import StateFile


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


class PartedFile(StateFile[PartedRecord]):
    """The record of a mirror of these volumes, in the state directory."""

    def __init__(self, directory: Path, volumes: Sequence[str]) -> None:
        digest = hashlib.sha256("\n".join(sorted(volumes)).encode()).hexdigest()[:12]
        super().__init__(
            directory / f"lvm-{digest}.json",
            PartedRecord,
            "Delete it and run `splitmirror resync`: a leg that is parted joins again.",
        )

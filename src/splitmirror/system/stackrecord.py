"""What stands in a stack's state.json, so that a later process finds what an earlier one began."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from splitmirror.model import Session, Volume
from splitmirror.system.statefile import StateFile


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


class RecordFile(StateFile[StackRecord]):
    """state.json in a directory, and the lock on that directory."""

    def __init__(self, directory: Path) -> None:
        super().__init__(
            directory / "state.json",
            StackRecord,
            "Unmount the mirror's disks, delete that file, and attach the mirror again.",
        )

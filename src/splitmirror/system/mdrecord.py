"""What md does not know of a split: whose it is, which members were parted, what lay on them.

Two files in the state directory. The first is durable before the freeze. The second is written
within the split itself, into a file made beforehand and without waiting for the disk: it says what
the parted members carry, by which a leg that came back into its array since is told from one that
did not. It is made durable as soon as nobody waits.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from splitmirror.errors import MirrorError
from splitmirror.system.statefile import StateFile

_ROOM = 4096  # bytes; some ten arrays


@dataclass(frozen=True, slots=True, kw_only=True)
class Parted:
    """A member that is, or is to be, a split's leg. `path`: where it was; `device` is what it is
    found by. `others`: the devices that went on as the primary. `events`: of the array before."""

    array: str  # UUID
    array_path: str
    device: str  # UUID
    path: str
    data_offset: int
    size: int
    others: tuple[str, ...]
    events: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """`length` bytes of a volume, from the byte `offset` of an array (its UUID)."""

    array: str
    offset: int
    length: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """A split, from its preparation to its rejoin. `volumes`: what each consists of, in order."""

    split_id: str
    legs: tuple[Parted, ...]
    volumes: dict[str, tuple[Piece, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class MdRecord:
    """`arrays`: the UUID of each array by its name in the settings, when it was seen last.
    `returning`: legs that were being given back. `copied_whole`: of the last ones given back those
    (by path) that had to be copied in full, with the reason."""

    arrays: dict[str, str] = field(default_factory=dict)
    split: Split | None = None
    returning: tuple[Parted, ...] = ()
    copied_whole: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Marks:
    """The count of events that each leg's superblock had when it was parted, by its device UUID.
    `exact`: read when nothing wrote there any more; else it may be off by the one superblock that
    was on its way."""

    split_id: str
    events: dict[str, int]
    exact: bool = False


class MdRecordFile(StateFile[MdRecord]):
    """The first file, and the lock. One for each choice of arrays, for several sources may share a
    state directory."""

    def __init__(self, directory: Path, devices: Sequence[str]) -> None:
        name = hashlib.blake2b("\n".join(devices).encode(), digest_size=6).hexdigest()
        self.directory = directory / f"md-{name}"
        super().__init__(
            self.directory / "state.json",
            MdRecord,
            "See in /proc/mdstat that every array is whole, then delete that file.",
        )
        self.marks = MarksFile(self.directory / "marks.json")

    def make_directory(self) -> None:
        """Harmless when it is there. Raises MirrorError."""
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise MirrorError(
                f"{self.directory} cannot be made: {error.strerror}",
                hint="Correct `state_dir`, or see who may write there.",
            ) from error


class MarksFile(StateFile[Marks]):
    """The second file."""

    def __init__(self, path: Path) -> None:
        super().__init__(
            path, Marks, "Delete that file; the leg of the last split is lost by that."
        )
        self._path = path

    def read(self) -> Marks | None:
        """None also when the split never came to write it, or a crash of the host lost it."""
        with contextlib.suppress(OSError):
            if not self._path.read_bytes().strip(b"\0"):
                return None
        return super().read()

    def prepare(self) -> int:
        """A descriptor for `write`, of an empty file whose room is there. Raises MirrorError."""
        try:
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            os.write(fd, bytes(_ROOM))
            os.fsync(fd)
            self._sync_directory()
        except OSError as error:
            raise MirrorError(
                f"{self._path} cannot be written: {error.strerror}",
                hint="Look at the room and the rights of its directory.",
            ) from error
        return fd


def write_marks(fd: int, split_id: str, events: Mapping[str, int]) -> None:
    """Into memory only: it survives this process, not the host. Raises OSError."""
    marks = msgspec.json.encode(Marks(split_id=split_id, events=dict(events)))
    os.pwrite(fd, marks.ljust(_ROOM), 0)

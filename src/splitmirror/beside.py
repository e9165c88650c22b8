"""The few files of a set that are not on the leg: configuration files, the redo log of the window,
what the server made for the backup. They are copied into the run's directory, and written behind
everything that is read off the leg.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from splitmirror.databases import RedoFile, Root
from splitmirror.errors import NoRoom, NoSuchFile
from splitmirror.model import Origin
from splitmirror.notes import sync
from splitmirror.stream.member import Member
from splitmirror.stream.pipeline import file_member
from splitmirror.stream.room import data_room, header_room


def copied_member(redo: RedoFile) -> Member:
    """A file, or a bare directory, from beside the leg."""
    origin = Origin.DATABASE if redo.made_by_server else Origin.PRIMARY
    return file_member(redo.name, redo.copy, origin)


def stored_size(redo: RedoFile) -> int:
    """Bytes of a copied file; of a directory none are stored."""
    return redo.copy.stat().st_size if redo.copy.is_file() else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyPart:
    """A part of copied files. `stored` and `room` as in stream.plan.Part."""

    number: int
    files: tuple[RedoFile, ...]
    stored: int
    room: int


def copy_parts(copied: Sequence[RedoFile], part_size: int, first: int) -> list[CopyPart]:
    """The copied files in parts of at most `part_size`, or of one file alone; numbered from `first`
    on."""
    parts: list[list[RedoFile]] = []
    left = 0
    for redo in copied:
        room = _room_of(redo)
        if not parts or room > left:
            parts.append([])
            left = part_size
        parts[-1].append(redo)
        left -= room
    return [
        CopyPart(
            number=number,
            files=tuple(files),
            stored=sum(map(stored_size, files)),
            room=sum(map(_room_of, files)),
        )
        for number, files in enumerate(parts, first)
    ]


def _room_of(redo: RedoFile) -> int:
    size = stored_size(redo)
    return header_room(redo.name) + data_room(size, size, 1)


def copy_outside(outside: Sequence[Root], into: Path) -> tuple[RedoFile, ...]:
    """Copy files from the primary, and of directories only themselves; synced, with owner, mode and
    times."""
    copies = []
    into.mkdir(mode=0o700)
    for number, root in enumerate(outside):
        copy = into / f"{number:04d}"
        try:
            status = os.stat(root.path)
            if stat.S_ISDIR(status.st_mode):
                copy.mkdir()
                shutil.copystat(os.fsdecode(root.path), copy)
            else:
                shutil.copy2(os.fsdecode(root.path), copy)
        except OSError as error:
            kind = NoRoom if error.errno == errno.ENOSPC else NoSuchFile
            raise kind(
                f"{os.fsdecode(root.path)} cannot be copied to {into}: {error.strerror}",
                hint="Check that it is there and readable, and that there is room for the copy.",
            ) from error
        os.chown(copy, status.st_uid, status.st_gid)
        sync(copy)
        copies.append(RedoFile(name=root.name, copy=copy))
    sync(into)
    return tuple(copies)

"""The medium seam: sequential media as tape sees them. One medium, one file in this folder.

A medium module has `Settings` (a msgspec.Struct) and `open_medium(settings) -> Medium`; it may have
`open_drives(settings) -> list[Medium]` where it can have several, and `open_changer(settings) ->
Changer | None` where something puts volumes into them (`changer`, `library`). It is found by its
name in the configuration. What lies on a medium is a sequence of objects: records (blocks)
and filemarks, counted from 0 at the beginning of the volume, as SCSI's LOCATE counts them (SSC-3,
logical object identifier).
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol, runtime_checkable

from splitmirror.errors import MediumError


class Mark(enum.Enum):
    """What a read met instead of a record."""

    FILEMARK = "filemark"
    END_OF_DATA = "end of data"


FILEMARK: Final = Mark.FILEMARK
END_OF_DATA: Final = Mark.END_OF_DATA

Block = bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Record sizes in bytes that the medium takes; `fixed`: one size only."""

    smallest: int
    largest: int
    fixed: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """Bytes in all, and bytes left before the early warning; None: not known. `rest`: bytes left
    before the end itself, behind the early warning too."""

    total: int | None
    left: int | None
    rest: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How a drive wants to be fed, in bytes a second: `native` is its own rate, below `least` it
    stops and starts again. `buffer_s`: seconds of its own rate that are gathered in memory, filled
    up to `mark` (0 to 1, a share of it) before the drive starts."""

    native: int
    least: int
    buffer_s: float
    mark: float


class Medium(Protocol):
    """A drive with, perhaps, a volume in it. One user at a time, no threads.

    Raises MediumError or one of its kind; the position after an error is where it was before,
    or the medium must be located anew (MediumError says which).
    """

    def load(self, *, writable: bool) -> None:
        """Make the volume ready and stand at its beginning. Loaded already: rewinds. Raises Busy
        when someone else writes it, WrongMedium when it is none."""
        ...

    def unload(self) -> None:
        """Sync and let go. Not loaded: harmless."""
        ...

    def write(self, blocks: Sequence[Block]) -> bool:
        """Write each block as one record, at the position; what lay behind it is gone. True: early
        warning, little room is left (the blocks are written). Raises EndOfMedium when the rest did
        not fit, standing behind the last whole record that did."""
        ...

    def write_filemarks(self, count: int, *, sync: bool) -> bool:
        """Write filemarks; with `sync` all that came before is on the medium when it returns. With
        count 0 only the sync. True: early warning."""
        ...

    def read(self, buffer: memoryview) -> int | Mark:
        """The next record into `buffer`, its length; or the mark that was met and passed
        (END_OF_DATA is not passed). Raises MediumError when the record is longer than the
        buffer, standing before it."""
        ...

    def locate(self, position: int) -> None:
        """Stand before object `position`. Raises MediumError beyond the end of data."""
        ...

    def space_filemarks(self, count: int) -> None:
        """Forward over `count` filemarks (behind the last of them), or with a negative count
        backward (before the last of them). Raises MediumError when there are not so many, standing
        at the end of data, or at the beginning."""
        ...

    def tell(self) -> int:
        """The number of the object that is next, counted in software, checked against the device
        where it can be asked."""
        ...

    @property
    def limits(self) -> Limits: ...

    @property
    def capacity(self) -> Capacity: ...


@runtime_checkable
class Ejecting(Protocol):
    """What a medium has that keeps a volume in until it is told otherwise."""

    def eject(self) -> None:
        """Unload, and let the volume out for a hand or a changer to take. None in it: harmless."""
        ...


@runtime_checkable
class Identified(Protocol):
    """What a medium has that is told from others."""

    @property
    def name(self) -> str:
        """What people and leases call it: the path of its device, mostly."""
        ...

    @property
    def device(self) -> str:
        """Its serial number, by which a changer knows it; "" when that is not known."""
        ...


@runtime_checkable
class Paced(Protocol):
    """What a drive has that must be fed at its own pace."""

    @property
    def pace(self) -> Pace: ...


@runtime_checkable
class WriteOnce(Protocol):
    """What a medium has of which some volumes can be written once only."""

    @property
    def write_once(self) -> bool:
        """Of the volume that is loaded: what was written stays, and can only be added to."""
        ...


@runtime_checkable
class Telling(Protocol):
    """What a drive has that tells how it is."""

    def alerts(self) -> list[str]:
        """What it says of itself and of the volume in it, in words. It may say each once only."""
        ...


Place = tuple[int, int]
"""Where bytes lie in some memory: from, up to."""


@runtime_checkable
class ManyAtOnce(Protocol):
    """What a medium may have beside a Medium's methods, where many records in one go are quicker
    than one after the other."""

    def read_many(self, buffer: memoryview, most: int) -> tuple[list[Place], Mark | None]:
        """Up to `most` records (1 at least), as far as `buffer` has room for them and for what the
        medium has between them: where they lie in it, in order. Or none, and the mark that was met
        and passed. Where fewer came than were asked for, the position is not known: locate.

        Raises as `read` does when not even the first can be read. The buffer is best page-aligned.
        """
        ...


def read_many(medium: Medium, buffer: memoryview, most: int) -> tuple[list[Place], Mark | None]:
    """`ManyAtOnce.read_many` of any medium: record by record where it has no way of its own."""
    if isinstance(medium, ManyAtOnce):
        return medium.read_many(buffer, most)
    found: list[Place] = []
    at = length = 0
    while len(found) < most and at + length <= len(buffer):
        try:
            read = medium.read(buffer[at:])
        except MediumError:
            if not found:
                raise
            break
        if isinstance(read, Mark):
            return found, None if found else read
        length = read
        found.append((at, at + length))
        at += length
    return found, None

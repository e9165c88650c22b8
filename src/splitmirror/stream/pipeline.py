"""Members with their bytes, ready for a part: from the leg, and the few files beside it.

with LegSource(leg, trees, view, table) as source:
    for member in source.members(part):
        writer.write(member)
"""

from __future__ import annotations

import os
import stat
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Final

from splitmirror.errors import DatabaseError
from splitmirror.extents.table import FileTable
from splitmirror.model import Attributes, Kind, Leg, Origin, Tree
from splitmirror.stream.leg_reader import WINDOW, LegReader, Window
from splitmirror.stream.leg_runs import LegRuns
from splitmirror.stream.look import Looker, ReadCounts, TreeOpener
from splitmirror.stream.member import Member
from splitmirror.stream.plan import Part
from splitmirror.stream.windows import Share
from splitmirror.system import xattrs
from splitmirror.system.fiemap import data_ranges

_COPY: Final = 1 << 20  # bytes of a copied file read at once

NO_TITLES: Final[Mapping[bytes, str]] = MappingProxyType({})


class LegSource:
    """The files of a split, read off its leg. `counts` says what reading came to.

    `view` is the mounted leg; None where it cannot be mounted: then the table's attributes and maps
    are believed. `titles`: the database's own names, by member name. Leaving the `with` ends the
    threads and closes every descriptor, whatever happened; the view stays the caller's.
    Raises LegError when the leg cannot be opened.
    """

    def __init__(
        self,
        leg: Leg,
        trees: Sequence[Tree],
        view: TreeOpener | None,
        table: FileTable,
        *,
        titles: Mapping[bytes, str] = NO_TITLES,
        window: int = WINDOW,
    ) -> None:
        self.counts = ReadCounts()
        self._titles = titles
        runs = LegRuns(leg)
        self._looker = Looker(table, trees, runs, view, self.counts)
        self._reader = LegReader(runs, self._looker, self.counts, window=window)
        self._reading: Generator[Member, None, None] | None = None

    def __enter__(self) -> LegSource:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """A second call is harmless."""
        self._stop()
        self._reader.close()
        self._looker.close()

    def members(self, part: Part) -> Iterator[Member]:
        """The members of a part, in its order. One part at a time: another call ends the reading of
        the one before. The same part can be read again.

        Raises LegError, naming what cannot be read: what came before it is good.
        """
        self._stop()
        self._reading = self._members(part)
        return self._reading

    def _stop(self) -> None:
        if self._reading is not None:
            self._reading.close()
            self._reading = None

    def _members(self, part: Part) -> Generator[Member, None, None]:
        with closing(_Cursor(self._reader.windows(part.items))) as cursor:
            while (share := cursor.next()) is not None:
                if share.begins:  # else the rest of a member whose chunks were not taken
                    yield self._member(share, cursor)

    def _member(self, share: Share, cursor: _Cursor) -> Member:
        look = share.look
        return Member(
            name=look.name,
            attributes=look.attributes,
            size=look.size,
            ranges=look.ranges,
            chunks=cursor.chunks(share) if look.ranges else (),
            piece=look.item.piece,
            title=self._titles.get(look.name, ""),
        )


class _Cursor:
    """Goes through the shares of window after window."""

    def __init__(self, windows: Iterator[Window]) -> None:
        self._windows = windows
        self._window: Window | None = None
        self._shares: Iterator[Share] = iter(())
        self._current: Share | None = None

    def close(self) -> None:
        self._current = None
        if isinstance(self._windows, Generator):
            self._windows.close()

    def next(self) -> Share | None:
        """The next share, of the next window where this one has no more; None behind the last."""
        while (share := next(self._shares, None)) is None:
            self._current = None  # its window is given back
            self._window = next(self._windows, None)
            if self._window is None:
                return None
            self._shares = iter(self._window.shares)
        self._current = share
        return share

    def chunks(self, share: Share | None) -> Iterator[memoryview]:
        """The data of a member from its first share on, through all windows that it reaches."""
        while share is not None:
            if self._current is not share or self._window is None:
                raise RuntimeError("a member's chunks were asked for after the next member")
            yield from self._window.chunks(share)
            if share.ends:
                return
            if self._current is not share:
                raise RuntimeError("a member's chunks were asked for after the next member")
            share = self.next()


def file_member(name: bytes, path: Path, origin: Origin, *, title: str = "") -> Member:
    """A file that is not on the leg, as a member: a configuration file, a redo log that was copied,
    what the server made. Symbolic links are followed. Its size is the one it has now: what it grows
    by is left out, and when its chunks are taken DatabaseError is raised if it became shorter.

    Raises DatabaseError when it cannot be read or is no regular file.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise DatabaseError(
                    f"{path} is no regular file", hint="Leave it out of the set.", path=path
                )
            ranges = tuple(data_ranges(fd, status.st_size))
            found = xattrs.of(fd)
        finally:
            os.close(fd)
    except OSError as error:
        raise _cannot_copy(path, error.strerror or str(error)) from error
    attributes = Attributes(
        kind=Kind.FILE,
        mode=stat.S_IMODE(status.st_mode),
        uid=status.st_uid,
        gid=status.st_gid,
        size=status.st_size,
        mtime_ns=status.st_mtime_ns,
        xattrs=found,
    )
    return Member(
        name=name,
        attributes=attributes,
        size=status.st_size,
        ranges=ranges,
        chunks=_copied(path, ranges),
        origin=origin,
        title=title,
    )


def _copied(path: Path, ranges: Sequence[tuple[int, int]]) -> Iterator[memoryview]:
    buffer = memoryview(bytearray(_COPY))
    try:
        with path.open("rb", buffering=0) as file:
            for offset, length in ranges:
                end = offset + length
                while offset < end:
                    got = os.preadv(file.fileno(), [buffer[: min(_COPY, end - offset)]], offset)
                    if not got:
                        raise _cannot_copy(path, "it became shorter meanwhile")
                    yield buffer[:got]
                    offset += got
    except OSError as error:
        raise _cannot_copy(path, error.strerror or str(error)) from error


def _cannot_copy(path: Path, why: str) -> DatabaseError:
    return DatabaseError(
        f"{path} cannot be copied: {why}",
        hint="Check that nothing takes it away during a backup, and back up anew.",
        path=path,
    )

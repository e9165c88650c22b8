"""Members with their bytes, ready for a part: from the leg, and the few files beside it.

with LegSource(leg, trees, view, table) as source:
    for part, stretches in source.parts(plan.parts):
        for stretch in stretches:
            if isinstance(stretch, Member):
                writer.add(stretch)
            else:
                writer.add_plain(stretch)
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Final

from splitmirror.errors import DatabaseError
from splitmirror.extents.table import FileTable
from splitmirror.model import Attributes, Kind, Leg, Origin, Tree
from splitmirror.stream.behind import Then, at_once
from splitmirror.stream.leg_reader import LegReader
from splitmirror.stream.leg_runs import LegRuns
from splitmirror.stream.look import Looker, ReadCounts, TreeOpener
from splitmirror.stream.member import Member, PlainFile
from splitmirror.stream.plan import Part
from splitmirror.stream.reader_process import Filled, FilledWindow, PlainShare, ReaderProcess
from splitmirror.system import xattrs
from splitmirror.system.fiemap import data_ranges

WINDOW: Final = 64 << 20
WINDOWS: Final = 3  # one being emitted, one being read, one being looked at
_COPY: Final = 1 << 20  # bytes of a copied file read at once
# A thread that has a window to pass on must not wait for the interpreter longer than a read takes;
# by default Python's threads take turns of 5 ms (sys.setswitchinterval).
_TURN_S: Final = 0.0002
PLAIN: Final = 512  # ordinary files in one stretch: so often is progress told

Stretch = Member | list[PlainFile]

_TOO_LATE: Final = "a member's chunks were asked for after the next member"

NO_TITLES: Final[Mapping[bytes, str]] = MappingProxyType({})


class LegSource:
    """The files of a split, read off its leg. `counts` says what reading came to.

    `view` is the mounted leg; None where it cannot be mounted: then the table's attributes and maps
    are believed. `titles`: the database's own names, by member name. Leaving the `with` ends the
    reader's process and closes every descriptor, whatever happened; the view stays the caller's.
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
        self._titles, self._window = titles, window
        self._runs = LegRuns(leg)
        self._looker = Looker(table, trees, self._runs, view, self.counts)
        self._process: ReaderProcess | None = None
        self._given: PlainFile | None = None

    def __enter__(self) -> LegSource:
        self._turn_s = sys.getswitchinterval()
        sys.setswitchinterval(_TURN_S)  # the reader's process inherits it
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        sys.setswitchinterval(self._turn_s)
        self.close()

    def close(self) -> None:
        """A second call is harmless."""
        self.stop()
        self._looker.close()

    def parts(
        self, parts: Sequence[Part], then: Then = at_once
    ) -> Iterator[tuple[Part, Iterator[Stretch]]]:
        """Each part with its members, in order; ordinary small files that follow one another in
        one stretch. The next part is read ahead before the one before it was taken; what was not
        taken of a part is passed over. `then`: see stream.behind.

        Reading begins at once. One at a time: another call ends the one before. Raises LegError,
        naming what cannot be read: what came before it is good.
        """
        self.stop()
        self._process = ReaderProcess(
            self._open_reader,
            chain.from_iterable(part.items.records() for part in parts),
            self.counts,
            windows=WINDOWS,
            size=self._window,
            kept=self._looker.open_trees(),
        )
        return self._parts(parts, _Cursor(self._process.windows(then)))

    def members(self, part: Part) -> Iterator[Member]:
        """The members of one part, each by itself. As `parts`."""
        for _, stretches in self.parts([part]):
            for stretch in stretches:
                if isinstance(stretch, Member):
                    yield stretch
                    continue
                for self._given in stretch:
                    yield _as_member(self._given, self._chunk(self._given))
                self._given = None

    def _chunk(self, file: PlainFile) -> Iterator[memoryview]:
        """The data of an ordinary file, as long as it is the one that was given last."""
        if self._given is not file:
            raise RuntimeError(_TOO_LATE)
        if file.data:
            yield file.data

    def stop(self) -> None:
        """End the reading that is under way. None is: harmless."""
        process, self._process = self._process, None
        if process is not None:
            process.close()

    def _open_reader(
        self, buffers: Sequence[memoryview], fence: Callable[[], Callable[[], None]]
    ) -> LegReader:
        return LegReader(self._runs, self._looker, self.counts, buffers, fence)

    def _parts(
        self, parts: Sequence[Part], cursor: _Cursor
    ) -> Iterator[tuple[Part, Iterator[Stretch]]]:
        for part in parts:
            stretches = self._stretches(cursor, len(part.items))
            yield part, stretches
            for _ in stretches:
                pass

    def _stretches(self, cursor: _Cursor, left: int) -> Iterator[Stretch]:
        """The next `left` members."""
        while left and (share := cursor.next()) is not None:
            if not isinstance(share, Filled):
                files = cursor.plain_files(min(left, PLAIN), self._titles)
                left -= len(files)
                yield files
            elif share.begins:  # else the rest of a member whose chunks were not taken
                left -= 1
                yield self._member(share, cursor)

    def _member(self, share: Filled, cursor: _Cursor) -> Member:
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

    def __init__(self, windows: Iterator[FilledWindow]) -> None:
        self._windows = windows
        self._buffer = memoryview(b"")
        self._shares: Sequence[PlainShare | Filled] = ()
        self._at = 0  # of the shares, the one that is next
        self._current: PlainShare | Filled | None = None

    def next(self) -> PlainShare | Filled | None:
        """The next share, of the next window where this one has no more; None behind the last."""
        while self._at == len(self._shares):
            self._current, self._shares, self._at = None, (), 0
            window = next(self._windows, None)  # the one before is given back
            if window is None:
                return None
            self._buffer, self._shares = window
        self._current = share = self._shares[self._at]
        self._at += 1
        return share

    def plain_files(self, most: int, titles: Mapping[bytes, str]) -> list[PlainFile]:
        """The ordinary file that `next` gave, and those that follow it in its window."""
        begin, buffer, files = self._at - 1, self._buffer, list[PlainFile]()
        for share in islice(self._shares, begin, begin + most):
            if isinstance(share, Filled):
                break
            name, mode, uid, gid, mtime_ns, xattrs, size, position = share
            data = buffer[position : position + size]
            title = titles.get(name, "")
            files.append(PlainFile(name, mode, uid, gid, mtime_ns, xattrs, title, data))
        self._at = begin + len(files)
        self._current = None
        return files

    def chunks(self, share: Filled | None) -> Iterator[memoryview]:
        """The data of a member from its first share on, through all windows that it reaches."""
        while share is not None:
            for position, length in share.places:
                if self._current is not share:
                    raise RuntimeError(_TOO_LATE)
                yield self._buffer[position : position + length]
            if share.ends:
                return
            if self._current is not share:
                raise RuntimeError(_TOO_LATE)
            after = self.next()
            share = after if isinstance(after, Filled) else None


def _as_member(file: PlainFile, chunks: Iterator[memoryview]) -> Member:
    size = len(file.data)
    attributes = Attributes(
        kind=Kind.FILE,
        mode=file.mode,
        uid=file.uid,
        gid=file.gid,
        size=size,
        mtime_ns=file.mtime_ns,
        xattrs=file.xattrs,
    )
    return Member(
        name=file.name,
        attributes=attributes,
        size=size,
        ranges=((0, size),) if size else (),
        chunks=chunks,
        title=file.title,
    )


_COPIED_KINDS = {stat.S_IFREG: Kind.FILE, stat.S_IFDIR: Kind.DIRECTORY}


def file_member(name: bytes, path: Path, origin: Origin, *, title: str = "") -> Member:
    """A file that is not on the leg, as a member: a configuration file, a redo log that was copied,
    what the server made; or a directory, without what is in it. Symbolic links are followed. Its
    size is the one it has now: what it grows by is left out, and when its chunks are taken
    DatabaseError is raised if it became shorter.

    Raises DatabaseError when it cannot be read or is something else.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            status = os.fstat(fd)
            kind = _COPIED_KINDS.get(stat.S_IFMT(status.st_mode))
            if kind is None:
                raise DatabaseError(
                    f"{path} is no regular file", hint="Leave it out of the set.", path=path
                )
            size = status.st_size if kind is Kind.FILE else 0
            ranges = tuple(data_ranges(fd, size))
            found = xattrs.of(fd)
        finally:
            os.close(fd)
    except OSError as error:
        raise _cannot_copy(path, error.strerror or str(error)) from error
    attributes = Attributes(
        kind=kind,
        mode=stat.S_IMODE(status.st_mode),
        uid=status.st_uid,
        gid=status.st_gid,
        size=size,
        mtime_ns=status.st_mtime_ns,
        xattrs=found,
    )
    return Member(
        name=name,
        attributes=attributes,
        size=size,
        ranges=ranges,
        chunks=_copied(path, ranges),
        origin=origin,
        title=title,
    )


def _copied(path: Path, ranges: Sequence[tuple[int, int]]) -> Iterator[memoryview]:
    try:
        with path.open("rb", buffering=0) as file:
            for offset, length in ranges:
                end = offset + length
                while offset < end:
                    chunk = os.pread(file.fileno(), min(_COPY, end - offset), offset)
                    if not chunk:
                        raise _cannot_copy(path, "it became shorter meanwhile")
                    yield memoryview(chunk)
                    offset += len(chunk)
    except OSError as error:
        raise _cannot_copy(path, error.strerror or str(error)) from error


def _cannot_copy(path: Path, why: str) -> DatabaseError:
    return DatabaseError(
        f"{path} cannot be copied: {why}",
        hint="Check that nothing takes it away during a backup, and back up anew.",
        path=path,
    )

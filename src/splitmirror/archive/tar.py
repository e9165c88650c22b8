"""A tar in records of one size, on its way to the medium and back: headers, contents, end.

Writing and reading keep a few MiB, whatever the size. What is no tar of this format raises
MediumDamaged with the position.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from blake3 import blake3

from splitmirror.archive import pax, sparse, unpax
from splitmirror.archive.pax import BLOCK
from splitmirror.archive.records import ReadRecord, RecordReader, RecordWriter, one_by_one
from splitmirror.errors import LegError
from splitmirror.media import Block
from splitmirror.model import Attributes, Kind
from splitmirror.stream.behind import Sink, Then, at_once

_EXTENDED_LIMIT = 64 << 20  # bytes of a pax header; more than the xattrs of a file take
_IN_MEMORY = 16 << 20  # bytes of a text that are kept before they go to a temporary file
_CHUNK = 1 << 20
_SHARED = 8 << 20  # bytes of a member that is worth hashing on several cores
_AT_ONCE = 4 << 20  # bytes hashed before they are handed on: the medium has work while we hash


def spool(scratch: Path | None) -> IO[bytes]:
    """Where a text grows until its length is known, which its header must tell first."""
    directory = None if scratch is None else str(scratch)
    return tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY, dir=directory)


def contents(text: IO[bytes]) -> Iterator[bytes]:
    """All of a spooled text, in chunks."""
    text.seek(0)
    while chunk := text.read(_CHUNK):
        yield chunk


class TarWriter:
    """Writes one tar. Raises what the sink raises; nothing may be written after that. What is
    written must stay as it is as RecordWriter says."""

    def __init__(self, sink: Sink, block_size: int, then: Then = at_once) -> None:
        self._records = RecordWriter(sink, block_size, then)

    @property
    def early_warning(self) -> bool:
        return self._records.early_warning

    @property
    def length(self) -> int:
        """Bytes so far."""
        return self._records.written

    def begin(
        self,
        name: bytes,
        attributes: Attributes,
        size: int,
        ranges: sparse.Ranges | None = None,
        comment: bytes = b"",
    ) -> None:
        """The headers, and for a file with holes the map of its `ranges`."""
        if ranges is None:
            self._records.put(pax.header(name, attributes, size=size, comment=comment))
            return
        entries = sparse.pack(ranges, size)
        archived = len(entries) + sum(length for _, length in ranges)
        header = pax.header(name, attributes, size=size, archived=archived, comment=comment)
        self._records.put(header)
        self._records.put(entries)

    def content(self, name: bytes, chunks: Iterable[Block], expected: int) -> bytes:
        """The bytes of a member, padded, and their BLAKE3. Raises LegError when there are not
        exactly as many as expected."""
        hasher = blake3(max_threads=blake3.AUTO if expected >= _SHARED else 1)
        left = expected
        for chunk in chunks:
            left -= len(chunk)
            if left < 0:
                break
            for at in range(0, len(chunk), _AT_ONCE):
                stretch = chunk[at : at + _AT_ONCE]
                hasher.update(stretch)
                self._records.put(stretch)
        if left:
            raise LegError(
                f"{os.fsdecode(name)} {'goes on beyond' if left < 0 else 'ended early, before'} "
                f"its {expected} bytes ({abs(left)} {'more' if left < 0 else 'missing'})",
                hint="The leg does not hold what the maps say. Do not trust this split: run the "
                "backup again, and report it if it happens twice.",
                name=name,
            )
        self._records.pad()
        return hasher.digest()

    def file(self, header: bytes, data: Block) -> int:
        """A regular file without holes, its header packed already (`pax.file_header`). Gives how
        much longer the tar became."""
        return self._records.put_file(header, data)

    def own(self, name: bytes, size: int, chunks: Iterable[Block]) -> None:
        """A member of the format itself, made now, readable by its owner only."""
        attributes = Attributes(
            kind=Kind.FILE, mode=0o600, uid=0, gid=0, size=size, mtime_ns=time.time_ns()
        )
        self.begin(name, attributes, size)
        self.content(name, chunks, size)

    def close(self) -> int:
        """The end of the archive, padded to a whole record. Gives the length of it all."""
        self._records.put(pax.END)
        self._records.close()
        return self._records.written


# --- reading


class Body:
    """The stored bytes of a member, in order. Iterate it once; each view is valid until the next
    is taken, and none once the next member was asked for."""

    def __init__(self, records: RecordReader, length: int) -> None:
        self._records = records
        self._left = length

    def __iter__(self) -> Iterator[memoryview]:
        for view in self._records.views(self._left):
            self._left -= len(view)
            yield view

    def pass_over(self) -> None:
        """Go behind what nobody took."""
        for _ in self:
            pass


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A member of a tar as its headers describe it. `offset` is where these begin."""

    header: unpax.Header
    offset: int
    ranges: tuple[tuple[int, int], ...]
    body: Body


class TarReader:
    """The members of one tape file, in order."""

    def __init__(self, read: ReadRecord | RecordReader, *, start: int = 0) -> None:
        """From byte `start` on of what `read` gives; or from where a reader stands."""
        if not isinstance(read, RecordReader):
            read = RecordReader(one_by_one(read), start=start)
        self.records = read

    def __iter__(self) -> Iterator[Entry]:
        """Ends behind the filemark. A body that was not taken is passed over."""
        while (entry := self._next()) is not None:
            yield entry
            entry.body.pass_over()
            self.records.skip(-self.records.position % BLOCK)
        self.records.finish()

    def _next(self) -> Entry | None:
        offset = self.records.position
        block = self.records.take(BLOCK)
        if not any(block):
            if any(self.records.take(BLOCK)):
                raise self.records.damaged("a single zero block in the tar")
            return None
        try:
            return self._entry(offset, block)
        except ValueError as error:
            raise self.records.damaged(str(error)) from error

    def _entry(self, offset: int, block: bytes) -> Entry:
        records: dict[bytes, bytes] = {}
        length = unpax.extended_length(block)
        if length is not None:
            if length > _EXTENDED_LIMIT:
                raise ValueError(f"a pax header of {length} bytes")
            records = unpax.records_of(self.records.take(length))
            self.records.skip(-length % BLOCK)
            block = self.records.take(BLOCK)
        header = unpax.unpack(block, records)
        ranges, stored = self._ranges(header)
        return Entry(header=header, offset=offset, ranges=ranges, body=Body(self.records, stored))

    def _ranges(self, header: unpax.Header) -> tuple[tuple[tuple[int, int], ...], int]:
        """The ranges that are stored, and their length in all; a map is read for it."""
        size = header.attributes.size
        if header.attributes.kind is not Kind.FILE:
            if header.archived:
                raise ValueError("content behind the header of what is no file")
            return (), 0
        if not header.sparse:
            return ((0, size),) if size else (), size
        parser, left = sparse.MapParser(), header.archived
        while left >= BLOCK:
            left -= BLOCK
            if parser.feed(self.records.take(BLOCK)):
                break
        ranges = parser.ranges(size)
        if sum(length for _, length in ranges) != left:
            raise ValueError("a sparse map that does not fit the data behind it")
        return ranges, left

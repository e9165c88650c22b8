"""Writes a part: a complete tar in records of one size, whose last member is its manifest.

A part either gets its end through `close`, or it never was: early warning, an error of the medium
or a member that ended early leave a tape file that the volume's next label overwrites.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import IO, BinaryIO

from blake3 import blake3

from splitmirror.archive import sparse
from splitmirror.archive.manifest import (
    PART_FORMAT,
    VERSION,
    MemberRecord,
    PartRecord,
    file_line,
    map_digest,
    member_line,
)
from splitmirror.archive.naming import OURS, comment_of, json_line, manifest_name, piece_name
from splitmirror.archive.pax import file_header
from splitmirror.archive.records import BLOCK_SIZE
from splitmirror.archive.tar import TarWriter, contents
from splitmirror.errors import LegError
from splitmirror.model import Kind
from splitmirror.stream.behind import Sink, Then, at_once
from splitmirror.stream.member import Member, PlainFile

_CHUNK = 1 << 20
_LAST_LINE = 4096  # bytes; it is never so long
_OF_NOTHING = blake3().hexdigest()


class PartWriter:
    """One part on its way to the medium. `sink` writes records and tells of early warning, `then`
    tells when it has done with them.

    After an exception nothing more can be added, and `close` raises. `lines` is an empty file that
    becomes the part's manifest; between its first line and its last stand the members', as the
    set's catalogue has them too (`member_text`).
    """

    def __init__(
        self,
        sink: Sink,
        lines: IO[bytes],
        *,
        number: int,
        set_id: str,
        block_size: int = BLOCK_SIZE,
        then: Then = at_once,
    ) -> None:
        self._tar = TarWriter(sink, block_size, then)
        self._number, self._set_id, self._block_size = number, set_id, block_size
        self._members = self._stored = 0
        self._lines = lines
        self._digest = blake3()
        self._whole = True
        self._note(
            json_line(
                {
                    "format": PART_FORMAT,
                    "version": VERSION,
                    "set": set_id,
                    "part": number,
                    "block_size": block_size,
                }
            )
        )

    @property
    def early_warning(self) -> bool:
        """Whether the sink ever told that little room is left."""
        return self._tar.early_warning

    @property
    def length(self) -> int:
        """Bytes of the tar so far, with headers and padding but without the manifest."""
        return self._tar.length

    @property
    def stored(self) -> int:
        """Bytes of data so far, without holes."""
        return self._stored

    def add(self, member: Member) -> MemberRecord:
        """Write a member; its bytes are with the sink, or gathered, when it returns.

        Raises LegError when its chunks are not exactly as long as its ranges, ValueError for a
        member that cannot be (a name below `.splitmirror/`; ranges out of order, or of which one
        but the last is no multiple of 512), and what the sink raises.
        """
        self._expect_whole()
        self._whole = False
        record = self._write(member)
        self._note(member_line(record, self._number))
        self._members += 1
        self._stored += record.stored
        self._whole = True
        return record

    def add_plain(self, files: Sequence[PlainFile]) -> None:
        """`add` for a stretch of ordinary small files, at a few microseconds each."""
        self._expect_whole()
        self._whole = False
        tar, number, lines = self._tar, self._number, list[str]()
        offset = tar.length
        for name, mode, uid, gid, mtime_ns, xattrs, title, data in files:
            if name.startswith(OURS):
                raise _reserved(name)
            size = len(data)
            digest = blake3(data).hexdigest() if size else _OF_NOTHING
            values = (name, mode, uid, gid, mtime_ns, xattrs, size)
            lines.append(file_line(number, offset, values, digest, title))
            offset += tar.file(file_header(values), data)
            self._stored += size
        self._note("".join(lines).encode("ascii"))
        self._members += len(files)
        self._whole = True

    def _expect_whole(self) -> None:
        if not self._whole:
            raise LegError(
                f"part {self._number} was broken off and cannot go on",
                hint="Write the part again from its first member.",
            )

    def _write(self, member: Member) -> MemberRecord:
        _check(member)
        offset = self._tar.length
        stored = member.stored
        holed = stored != member.size
        name = member.name if member.piece is None else piece_name(member.name, member.piece)
        ranges = member.ranges if holed else None
        self._tar.begin(
            name,
            member.attributes,
            member.size,
            ranges,
            comment_of(member.attributes, member.piece),
        )
        digest = b""
        if member.attributes.kind is Kind.FILE:
            digest = self._tar.content(member.name, member.chunks, stored)
        return MemberRecord(
            name=member.name,
            attributes=member.attributes,
            offset=offset,
            size=member.size,
            stored=stored,
            blake3=digest,
            map=map_digest(member.ranges, member.size) if holed else b"",
            origin=member.origin,
            piece=member.piece,
            title=member.title,
        )

    def _note(self, line: bytes) -> None:
        self._digest.update(line)
        self._lines.write(line)

    def close(self) -> PartRecord:
        """Write the manifest and the end of the tar, and pad the last record. Once only."""
        self._expect_whole()
        self._whole = False
        manifest = self._tar.length
        record = PartRecord(
            set_id=self._set_id,
            number=self._number,
            members=self._members,
            stored=self._stored,
            length=0,
            block_size=self._block_size,
            manifest=manifest,
            digest=self._digest.digest(),
        )
        self._lines.write(
            json_line(
                {
                    "members": record.members,
                    "stored": record.stored,
                    "blake3": record.digest.hex(),
                }
            )
        )
        size = self._lines.tell()
        self._tar.own(manifest_name(self._number), size, contents(self._lines))
        return replace(record, length=self._tar.close())


def _check(member: Member) -> None:
    """Raises ValueError for what no member is."""
    if member.name.startswith(OURS):
        raise _reserved(member.name)
    if member.ranges != ((0, member.size),):
        sparse.check(member.ranges, member.size)
    if member.size and member.attributes.kind is not Kind.FILE:
        raise ValueError(f"only a file has content: {member.name!r}")


def _reserved(name: bytes) -> ValueError:
    return ValueError(f"a name that is kept for the format itself: {name!r}")


def member_text(manifest: BinaryIO) -> Iterator[bytes]:
    """Of a whole manifest the lines of its members, in large chunks: all but the first and the
    last."""
    manifest.readline()
    size = os.fstat(manifest.fileno()).st_size
    begin = max(manifest.tell(), size - _LAST_LINE)
    left = begin + os.pread(manifest.fileno(), size - begin - 1, begin).rfind(b"\n") + 1
    left -= manifest.tell()
    while left > 0 and (chunk := manifest.read(min(left, _CHUNK))):
        left -= len(chunk)
        yield chunk


def member_lines(manifest: BinaryIO) -> Iterator[bytes]:
    """The same, line by line."""
    manifest.readline()
    last: bytes | None = None
    for line in manifest:
        if last is not None:
            yield last
        last = line

"""Writes a part: a complete tar in records of one size, whose last member is its manifest.

A part either gets its end through `close`, or it never was: early warning, an error of the medium
or a member that ended early leave a tape file that the volume's next label overwrites.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import TracebackType

from blake3 import blake3

from splitmirror.archive import sparse
from splitmirror.archive.manifest import (
    PART_FORMAT,
    VERSION,
    MemberRecord,
    PartRecord,
    map_digest,
    member_line,
)
from splitmirror.archive.naming import OURS, comment_of, json_line, manifest_name, piece_name
from splitmirror.archive.records import BLOCK_SIZE, Sink
from splitmirror.archive.tar import TarWriter, contents, spool
from splitmirror.errors import LegError
from splitmirror.model import Kind
from splitmirror.stream.member import Member


class PartWriter:
    """One part on its way to the medium. `sink` writes records and tells of early warning.

    A context manager: leaving it lets go of the temporary file; only `close` ends the part. After
    an exception nothing more can be added, and `close` raises. `line` is the manifest's line of the
    member that was added last, as the set's catalogue wants it too.
    """

    def __init__(
        self,
        sink: Sink,
        *,
        number: int,
        set_id: str,
        block_size: int = BLOCK_SIZE,
        scratch: Path | None = None,
    ) -> None:
        """`scratch`: a directory for the manifest of very many members, on nothing that will be
        frozen; by default the system's for temporary files."""
        self._tar = TarWriter(sink, block_size)
        self._number, self._set_id, self._block_size = number, set_id, block_size
        self._members = self._stored = 0
        self.line = b""
        self._lines = spool(scratch)
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

    def __enter__(self) -> PartWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._lines.close()

    @property
    def early_warning(self) -> bool:
        """Whether the sink ever told that little room is left."""
        return self._tar.early_warning

    @property
    def length(self) -> int:
        """Bytes of the tar so far, with headers and padding but without the manifest."""
        return self._tar.length

    def add(self, member: Member) -> MemberRecord:
        """Write a member; its bytes are with the sink, or gathered, when it returns.

        Raises LegError when its chunks are not exactly as long as its ranges, ValueError for a
        member that cannot be (a name below `.splitmirror/`; ranges out of order, or of which one
        but the last is no multiple of 512), and what the sink raises.
        """
        self._expect_whole()
        self._whole = False
        record = self._write(member)
        self.line = member_line(record, self._number)
        self._note(self.line)
        self._members += 1
        self._stored += record.stored
        self._whole = True
        return record

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
        self._lines.close()
        return replace(record, length=self._tar.close())


def _check(member: Member) -> None:
    """Raises ValueError for what no member is."""
    if member.name.startswith(OURS):
        raise ValueError(f"a name that is kept for the format itself: {member.name!r}")
    if member.ranges != ((0, member.size),):
        sparse.check(member.ranges, member.size)
    if member.size and member.attributes.kind is not Kind.FILE:
        raise ValueError(f"only a file has content: {member.name!r}")

"""Reads parts back: member by member, from the beginning or from one member's offset.

The source is anything that reads records like a Medium. What is not as docs/format.md says raises
MediumDamaged with the position; whether a name may be written to is for the restore to judge.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from splitmirror.archive.manifest import ManifestReader, MemberRecord, PartRecord
from splitmirror.archive.naming import OURS, PIECES, from_comment, is_manifest, piece_name, to_text
from splitmirror.archive.records import ReadRecord
from splitmirror.archive.tar import Entry, TarReader
from splitmirror.model import Attributes
from splitmirror.stream.member import Piece


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadMember:
    """One file, directory, link or piece that was met on the medium.

    `name` and `attributes` are the whole file's, `size` and `ranges` those of this member's
    content, `offset` is where its headers begin in the tape file. `chunks` yields the stored bytes
    in order, once; a view is valid until the next is taken. Taking none is quick and allowed.
    """

    name: bytes
    attributes: Attributes
    size: int
    ranges: tuple[tuple[int, int], ...]
    offset: int
    chunks: Iterable[memoryview]
    piece: Piece | None = None

    @property
    def stored(self) -> int:
        """Bytes that the chunks yield."""
        return sum(length for _, length in self.ranges)

    def placed(self) -> Iterator[tuple[int, memoryview]]:
        """The chunks, each with its offset in this member; cut where a hole begins."""
        ranges = iter(self.ranges)
        at = left = 0
        for chunk in self.chunks:
            while chunk:
                if not left:
                    at, left = next(ranges)
                yield at, chunk[:left]
                taken = min(left, len(chunk))
                at, left, chunk = at + taken, left - taken, chunk[taken:]


def read_members(read: ReadRecord, *, start: int = 0) -> Iterator[ReadMember]:
    """The members of a part, without its manifest, from the one whose headers begin at `start`.

    The source stands behind the part's first `start // block_size` records. At the end it stands
    behind the part's filemark. Raises MediumDamaged.
    """
    tar = TarReader(read, start=start)
    manifest = False
    for entry in tar:
        if manifest:
            raise tar.records.damaged("a member behind the manifest")
        manifest = is_manifest(entry.header.name)
        if not manifest:
            yield member_of_entry(tar, entry)
    if not manifest:
        raise tar.records.damaged("a part without its manifest")


def member_of_entry(tar: TarReader, entry: Entry) -> ReadMember:
    """The member that an entry of a part's tar is. Raises MediumDamaged for a name of ours."""
    name, header = entry.header.name, entry.header
    try:
        attributes, piece = from_comment(header.comment, header.attributes)
        if piece is not None:
            name = name.removeprefix(PIECES).rpartition(b"/")[0]
        if header.name != (name if piece is None else piece_name(name, piece)):
            raise ValueError(f"the piece {to_text(header.name)!r} is misnamed")
        if name.startswith(OURS) or not name:
            raise ValueError(f"an unknown member of the format's own: {to_text(header.name)!r}")
    except ValueError as error:
        raise tar.records.damaged(str(error)) from error
    return ReadMember(
        name=name,
        attributes=attributes,
        size=header.attributes.size,
        ranges=entry.ranges,
        offset=entry.offset,
        chunks=entry.body,
        piece=piece,
    )


class Manifest:
    """A part's manifest as it comes off the medium: iterate it once, to the end.

    `set_id` and `number` are known at once, `part` after the end, when the manifest was found whole
    and the source stands behind the part's filemark. Raises MediumDamaged.
    """

    def __init__(self, tar: TarReader, entry: Entry, rest: Iterator[Entry]) -> None:
        self._tar, self._entry, self._rest = tar, entry, rest
        try:
            self._reader = ManifestReader(entry.body)
        except ValueError as error:
            raise tar.records.damaged(str(error)) from error

    @property
    def set_id(self) -> str:
        return self._reader.set_id

    @property
    def number(self) -> int:
        return self._reader.number

    def __iter__(self) -> Iterator[MemberRecord]:
        try:
            yield from self._reader
        except ValueError as error:
            raise self._tar.records.damaged(str(error)) from error
        for _ in self._rest:
            raise self._tar.records.damaged("a member behind the manifest")

    @property
    def part(self) -> PartRecord:
        """The part that the manifest is of, without its position."""
        reader = self._reader
        return PartRecord(
            set_id=reader.set_id,
            number=reader.number,
            members=reader.members,
            stored=reader.stored,
            length=self._tar.records.position,
            block_size=reader.block_size,
            manifest=self._entry.offset,
            digest=reader.digest,
        )


def read_manifest(read: ReadRecord, *, start: int = 0) -> Manifest:
    """The manifest of a part. With its offset as `start` (PartRecord.manifest) no member is read;
    the source stands as for `read_members`. Raises MediumDamaged where there is none."""
    tar = TarReader(read, start=start)
    entries = iter(tar)
    for entry in entries:
        if is_manifest(entry.header.name):
            return Manifest(tar, entry, entries)
    raise tar.records.damaged("a part without its manifest")

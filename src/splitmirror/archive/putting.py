"""From the medium to the disk: each member checked by its hash while it is written, pieces joined,
links made again.

Damage to one member never costs another: it is noted, nothing stands under that member's name
(or NAME.damaged, when asked for), and the next one is read by its own position.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Set
from dataclasses import dataclass
from types import TracebackType

from blake3 import blake3

from splitmirror.archive.manifest import MemberRecord, map_digest
from splitmirror.archive.placing import NewFile, Placer
from splitmirror.archive.reading import ReadMember
from splitmirror.archive.seeking import PartReader
from splitmirror.errors import MediumDamaged, MediumError
from splitmirror.model import Kind


@dataclass(frozen=True, slots=True, kw_only=True)
class Mismatch:
    """A member that could not be given back as it was, and why."""

    name: bytes
    why: str


def checked(member: ReadMember, record: MemberRecord) -> Iterator[tuple[int, memoryview]]:
    """The member's bytes with their offsets in it; after the last, MediumDamaged when they are not
    those that were written."""
    if member.size != record.size or member.stored != record.stored:
        raise MediumDamaged(
            f"{member.size} bytes ({member.stored} stored), not {record.size} ({record.stored})"
        )
    if member.stored != member.size and map_digest(member.ranges, member.size) != record.map:
        raise MediumDamaged("its holes are not where they were")
    hasher = blake3()
    for offset, chunk in member.placed():
        hasher.update(chunk)
        yield offset, chunk
    if member.attributes.kind is Kind.FILE and hasher.digest() != record.blake3:
        raise MediumDamaged("its bytes do not have the recorded hash")


class _Joining:
    """A file on its way: whole at once, or piece by piece."""

    def __init__(self, new: NewFile) -> None:
        self.new = new
        self.next = 1  # the piece that must come now
        self.sound = True


class Putter:
    """Puts members into their places. Leaving it gives up what is not whole.

    `linked`: the names that hard links of this restore point to. `keep_damaged`: what was read of a
    damaged file stays as NAME.damaged.
    """

    def __init__(self, placer: Placer, linked: Set[bytes], *, keep_damaged: bool = False) -> None:
        self.files = self.directories = self.bytes = 0
        self.mismatches: list[Mismatch] = []
        self.left: dict[bytes, list[bytes]] = {}  # target not restored: links that wait for it
        self._placer, self._linked, self._keep = placer, linked, keep_damaged
        self._inodes: dict[bytes, bytes] = {}  # link target: the name under which it was placed
        self._joining: dict[bytes, _Joining] = {}
        self._done: set[bytes] = set()  # files in pieces that became links

    def __enter__(self) -> Putter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for joining in self._joining.values():
            joining.new.abandon(keep=self._keep and error is None)
        self._joining.clear()

    def put(self, reader: PartReader, record: MemberRecord) -> None:
        """Read the member and place it. Damage is noted; raises what the target's disk says, and
        OutsideTarget."""
        self._put(reader, record, record.name)

    def put_for_links(self, reader: PartReader, record: MemberRecord) -> None:
        """The member is no one's wish but the target of links in `left`: place it under the first
        link's name."""
        self._put(reader, record, self.left[record.name][0])

    def link_left(self, target: bytes) -> None:
        """The other names of a target that `put_for_links` placed."""
        first, *others = self.left[target]
        for name in others:
            if target in self._inodes:
                self._hardlink(name, target)
            else:
                self._damaged(name, f"it is another name of {os.fsdecode(first)}, see there")
        if target not in self._inodes and not any(bad.name == first for bad in self.mismatches):
            self._damaged(first, f"it is a link to {os.fsdecode(target)}, which the set lacks")

    def end(self) -> None:
        """All members were put: files whose last pieces never came are damaged."""
        for name in [name for name, joining in self._joining.items() if joining.sound]:
            self._damaged(name, "its last pieces are missing")

    # --- inside

    def _put(self, reader: PartReader, record: MemberRecord, name: bytes) -> None:
        try:
            if record.attributes.kind is Kind.HARDLINK:
                self._hardlink(name, record.attributes.link)
            elif record.attributes.kind is Kind.FILE:
                self._file(reader, record, name)
            else:
                self._other(reader.member(record), name)
        except MediumError as error:
            self._damaged(name, str(error))

    def _damaged(self, name: bytes, why: str) -> None:
        self.mismatches.append(Mismatch(name=name, why=why))
        joining = self._joining.get(name)
        if joining is not None:
            joining.sound = False

    def _other(self, member: ReadMember, name: bytes) -> None:
        for _ in member.chunks:
            pass
        if member.attributes.kind is Kind.DIRECTORY:
            self._placer.directory(name, member.attributes)
            self.directories += 1
            return
        if member.attributes.kind is Kind.SYMLINK:
            self._placer.symlink(name, member.attributes)
        elif not self._placer.special(name, member.attributes):
            return
        self.files += 1

    def _hardlink(self, name: bytes, target: bytes) -> None:
        source = self._inodes.get(target)
        if source is None:
            self.left.setdefault(target, []).append(name)
            return
        self._placer.hardlink(name, source)
        self._placed(name, name)

    def _file(self, reader: PartReader, record: MemberRecord, name: bytes) -> None:
        link = record.attributes.link  # set where the data of another part's member are repeated
        if name in self._done:
            return
        if link in self._inodes and name not in self._joining:
            self._hardlink(name, link)
            self._done.add(name)
            return
        member = reader.member(record)
        joining = self._joining.get(name) or _Joining(self._placer.file(name))
        self._joining[name] = joining
        number, count, begin = _piece(record)
        if joining.sound and number != joining.next:
            raise MediumDamaged(f"piece {number} of it comes where piece {joining.next} should")
        joining.next = number + 1
        if not joining.sound and not self._keep:
            return
        for offset, chunk in checked(member, record):
            joining.new.write(begin + offset, chunk)
            self.bytes += len(chunk)
        if number == count and joining.sound:
            joining.new.place(member.attributes)
            del self._joining[name]
            self._placed(name, record.name, link)

    def _placed(self, name: bytes, *known_as: bytes) -> None:
        """Remember where the file is that hard links know by these names."""
        self.files += 1
        for target in known_as:
            if target in self._linked or target in self.left:
                self._inodes.setdefault(target, name)


def _piece(record: MemberRecord) -> tuple[int, int, int]:
    """Its number, how many there are, where in the file it begins."""
    piece = record.piece
    return (1, 1, 0) if piece is None else (piece.number, piece.count, piece.offset)

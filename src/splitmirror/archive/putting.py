"""From the medium to the disk: each member checked by its hash while it is written, pieces joined,
links made again.

Damage to one member never costs another: it is noted, nothing stands under that member's name
(or NAME.damaged, when asked for), and the next one is read by its own position.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import dataclass
from types import TracebackType

from blake3 import blake3

from splitmirror.archive.ahead import Windows
from splitmirror.archive.hands import ComingFile, Hands
from splitmirror.archive.manifest import MemberRecord, map_digest
from splitmirror.archive.reading import ReadMember
from splitmirror.archive.seeking import PartReader, PlainRecord, Recorded
from splitmirror.errors import MediumDamaged, MediumError
from splitmirror.media import Place
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
        raise _wrong_hash()


def check_plain(memory: memoryview, places: Sequence[Place], record: PlainRecord) -> None:
    """The same for an ordinary file that is in memory whole."""
    if len(places) == 1:
        begin, end = places[0]
        digest = blake3(memory[begin:end]).digest()
    else:
        hasher = blake3()
        for begin, end in places:
            hasher.update(memory[begin:end])
        digest = hasher.digest()
    if digest != record.blake3:
        raise _wrong_hash()


def _wrong_hash() -> MediumDamaged:
    return MediumDamaged("its bytes do not have the recorded hash")


class _Joining:
    """A file on its way: whole at once, or in pieces, which come in any order where several volumes
    are read."""

    def __init__(self, new: ComingFile) -> None:
        self.new = new
        self.begun: set[int] = set()  # pieces that came
        self.placed = 0  # pieces that are with the hands
        self.sound = True


class Putter:
    """Puts members into their places, for several threads if need be. Leaving it gives up what is
    not whole.

    `linked`: the names that hard links of this restore point to. `keep_damaged`: what was read of a
    damaged file stays as NAME.damaged. `originals`: the places of which `leading` tells what leads
    there. The hands work behind it: what they could not place is known after `end` and `settle`.
    """

    def __init__(
        self,
        hands: Hands,
        windows: Windows,
        linked: Set[bytes],
        *,
        keep_damaged: bool = False,
        originals: Sequence[bytes] = (),
    ) -> None:
        self.bytes = 0
        self.left: dict[bytes, list[bytes]] = {}  # target not restored: links that wait for it
        self.leading: list[tuple[bytes, bytes]] = []  # symbolic links to the originals, and whereto
        self._hands, self._windows = hands, windows
        self._linked, self._keep = linked, keep_damaged
        self._originals = originals
        self._damages: list[tuple[int, Mismatch]] = []
        self._inodes: dict[bytes, bytes] = {}  # link target: the name under which it was placed
        self._joining: dict[bytes, _Joining] = {}
        self._coming: set[bytes] = set()  # link targets whose data are being placed
        self._done: set[bytes] = set()  # files with data of their own that became links
        self._deciding = threading.RLock()  # held where more than one of these is looked at

    def __enter__(self) -> Putter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:  # else the hands give up what is not whole
            self._abandon()

    @property
    def mismatches(self) -> tuple[Mismatch, ...]:
        """All damage that is known, in the order of the medium."""
        return tuple(bad for _, bad in sorted(self._damages, key=lambda damage: damage[0]))

    def put(self, reader: PartReader, records: Iterable[Recorded]) -> None:
        """Read members and have them placed. Damage is noted; raises what the target's disk says,
        and OutsideTarget."""
        for record in records:
            self._put(reader, record, record.name)

    def settle(self) -> None:
        """Wait for the hands, and note what they could not place."""
        with self._deciding:
            for turn, name, why, _ in self._hands.settle():
                self._note(turn, name, why)

    def links_that_wait(self) -> list[bytes]:
        """Wait for the hands, and note what they could not place. Gives the targets of `left` whose
        data must still be read, for they could not be placed or were not asked for."""
        with self._deciding:
            for turn, name, why, target in self._hands.settle():
                if target and self._inodes.pop(target, target) == target:
                    self.left.setdefault(target, []).append(name)
                else:
                    self._note(turn, name, why)
            for target in [target for target in self.left if target in self._inodes]:
                for name in self.left.pop(target):
                    self._hardlink(name, target)
            return [target for target in self.left if target not in self._coming]

    def put_for_links(self, reader: PartReader, record: Recorded) -> None:
        """The member is no one's wish but the target of links in `left`: place it under the first
        link's name."""
        self._put(reader, record, self.left[record.name][0])

    def link_left(self, target: bytes) -> None:
        """The other names of a target that `put_for_links` placed; it is not in `left` any more."""
        with self._deciding:
            first, *others = self.left.pop(target)
            for name in others:
                if target in self._inodes:
                    self._hardlink(name, target)
                else:
                    self._damaged(name, f"it is another name of {os.fsdecode(first)}, see there")
            told = any(bad.name == first for _, bad in self._damages)
            if target not in self._inodes and not told:
                self._damaged(first, f"it is a link to {os.fsdecode(target)}, which the set lacks")

    def end(self) -> None:
        """All members were put: files of which pieces never came are damaged."""
        for name in [name for name, joining in self._joining.items() if joining.sound]:
            self._damaged(name, "pieces of it are missing")
        self._abandon()
        self._coming.clear()

    # --- inside

    def _abandon(self) -> None:
        for joining in self._joining.values():
            joining.new.abandon(keep=self._keep)
        self._joining.clear()

    def _put(self, reader: PartReader, record: Recorded, name: bytes) -> None:
        try:
            if isinstance(record, PlainRecord):
                if not self._keep and name == record.name and self._plain(reader, record):
                    return
                record = record.in_full()
            if record.attributes.kind is Kind.HARDLINK:
                self._hardlink(name, record.attributes.link)
            elif record.attributes.kind is Kind.FILE:
                self._file(reader, record, name)
            else:
                self._other(reader.member(record), name)
        except MediumError as error:
            self._coming.discard(_target(record))
            self._damaged(name, str(error))

    def _plain(self, reader: PartReader, record: PlainRecord) -> bool:
        """An ordinary small file: nothing of it is written before its hash is known to be right.
        False: its headers are not what they should be."""
        places = reader.plain(record)
        if places is None:
            return False
        check_plain(self._windows.memory, places, record)
        if self._becomes_link(record, record.name):
            return True
        self._hands.small(record.values, places, reader.windows)
        with self._deciding:
            self.bytes += record.values[-1]
            if self._linked or self.left:
                self._placed(record.name, record.name)
        return True

    def _damaged(self, name: bytes, why: str) -> None:
        with self._deciding:
            self._note(self._hands.turn, name, why)
            joining = self._joining.get(name)
            if joining is not None:
                joining.sound = False

    def _note(self, turn: int, name: bytes, why: str) -> None:
        self._damages.append((turn, Mismatch(name=name, why=why)))

    def _other(self, member: ReadMember, name: bytes) -> None:
        for _ in member.chunks:
            pass
        if member.attributes.kind is Kind.DIRECTORY:
            self._hands.directory(name, member.attributes)
        elif member.attributes.kind is Kind.SYMLINK:
            self._hands.symlink(name, member.attributes)
            self._look_whereto(name, member.attributes.link)
        else:
            self._hands.special(name, member.attributes)

    def _look_whereto(self, name: bytes, link: bytes) -> None:
        if any(link == place or link.startswith(place + b"/") for place in self._originals):
            self.leading.append((name, link))

    def _hardlink(self, name: bytes, target: bytes) -> None:
        with self._deciding:
            source = self._inodes.get(target)
            if source is None:
                self.left.setdefault(target, []).append(name)
                return
            self._hands.hardlink(name, source)
            self._placed(name, name)

    def _file(self, reader: PartReader, record: MemberRecord, name: bytes) -> None:
        if self._becomes_link(record, name):
            return
        member = reader.member(record)
        number, count, begin = _piece(record)
        with self._deciding:
            joining = self._joining.get(name) or _Joining(self._hands.file(name))
            self._joining[name] = joining
            if joining.sound and number in joining.begun:
                raise MediumDamaged(f"piece {number} of it comes twice")
            joining.begun.add(number)
        if not joining.sound and not self._keep:
            return
        if record.stored == record.size:
            joining.new.expect(begin, record.size)
        for offset, chunk in checked(member, record):
            joining.new.write(begin + offset, self._windows.place_of(chunk), reader.windows)
        with self._deciding:
            self.bytes += record.stored
            joining.placed += 1
            if joining.placed == count and joining.sound:
                joining.new.place(member.attributes)
                del self._joining[name]
                self._placed(name, record.name, record.attributes.link)

    def _becomes_link(self, record: Recorded, name: bytes) -> bool:
        """Whether a file is to be a link, for the same data came under another name before: they
        stand in more than one part, and where several volumes are read either can be the first."""
        target = _target(record)
        if target not in self._linked and target not in self.left:
            return False
        with self._deciding:
            if name in self._done:
                return True
            if name in self._joining:
                return False
            if target in self._inodes:
                self._hardlink(name, target)
            elif target in self._coming:
                self.left.setdefault(target, []).append(name)
            else:
                self._coming.add(target)
                return False
            self._done.add(name)
            return True

    def _placed(self, name: bytes, *known_as: bytes) -> None:
        """Remember where the file is that hard links know by these names."""
        for target in known_as:
            self._coming.discard(target)
            if target in self._linked or target in self.left:
                self._inodes.setdefault(target, name)


def _target(record: Recorded) -> bytes:
    """The name by which hard links know the file."""
    if isinstance(record, PlainRecord):
        return record.name
    return record.attributes.link or record.name


def _piece(record: MemberRecord) -> tuple[int, int, int]:
    """Its number, how many there are, where in the file it begins."""
    piece = record.piece
    return (1, 1, 0) if piece is None else (piece.number, piece.count, piece.offset)

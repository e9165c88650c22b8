"""Read chosen members off a medium by their positions: forward, each record at most once.

Members that lie near one another are read in one go with what is between them, for a drive that
streams passes a gap sooner than it stops, locates and starts (SSC-3, LOCATE). Farther ones are
located, so that one file of a large set costs its own records and no more.

Nearly every member is an ordinary file whose headers are what its record says. So they are packed
anew from the record and compared: equal bytes need not be parsed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import TracebackType
from typing import NamedTuple

from splitmirror.archive import pax
from splitmirror.archive.ahead import Ahead, Window, Windows
from splitmirror.archive.manifest import MemberRecord, PartRecord
from splitmirror.archive.pax import BLOCK, FileValues
from splitmirror.archive.reading import ReadMember, member_of_entry
from splitmirror.archive.records import NextRecord, RecordReader
from splitmirror.archive.tar import Entry, TarReader
from splitmirror.errors import MediumDamaged, MediumError, WrongMedium
from splitmirror.media import Mark, Medium, Place
from splitmirror.media.labels import LabelGroup
from splitmirror.media.walking import VolumeReader, read_record

LABEL_OBJECTS = 4  # before a part's first record: three labels and a filemark
NEAR = 8 << 20  # bytes that are rather read than located over: some 30 ms on tape
WHOLE = 1 << 20  # bytes; up to here a file is checked before any of it is written
_HEADERS = 3 * BLOCK  # that a member nearly always has


class PlainRecord(NamedTuple):
    """What is recorded of an ordinary file of up to WHOLE bytes: whole, without holes, no hard
    link. Nearly all members of most sets are such, and this takes a tenth of the time that a
    MemberRecord does."""

    offset: int
    values: FileValues
    blake3: bytes

    @property
    def name(self) -> bytes:
        return self.values[0]

    @property
    def stored(self) -> int:
        return self.values[-1]

    def in_full(self) -> MemberRecord:
        """The same, without what is not needed to read it back."""
        return MemberRecord(
            name=self.name,
            attributes=pax.attributes_of(self.values),
            offset=self.offset,
            size=self.stored,
            stored=self.stored,
            blake3=self.blake3,
        )


Recorded = MemberRecord | PlainRecord


class PartReader:
    """The members of one part, asked for in the order of their offsets. A context manager: the
    medium is its own from the first member until it is left.

    What `plain` and `member` give is valid until the next one is asked for; or as long as somebody
    else holds the `windows` it lies in.
    """

    def __init__(
        self,
        medium: Medium,
        part: PartRecord,
        windows: Windows,
        waiting: Callable[[], None] = lambda: None,
    ) -> None:
        """`windows`: the memory, shared with other parts' readers. `waiting`: see Ahead."""
        if part.position is None:
            raise ValueError(f"part {part.number} has no position")
        self._part, self._block = part, part.block_size
        self._pool = windows
        self._memory = windows.memory
        self._ahead = Ahead(
            medium,
            self._pool,
            first_object=part.position.object,
            block_size=part.block_size,
            records=part.length // part.block_size,
            waiting=waiting,
        )
        self.windows: tuple[Window, ...] = ()  # in which the latest bytes lie
        self._held: list[Window] = []
        self._planned = 0  # behind the last record that was foreseen
        self._end: int | None = 0  # of the latest member; None: not known

    def __enter__(self) -> PartReader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._let_go()
        self._ahead.close()

    def foreseeing(self, stretches: Iterable[Sequence[Recorded]]) -> Iterator[Sequence[Recorded]]:
        """Stretches of members, each when they may be asked for; those of the next are read ahead
        meanwhile."""
        now: Sequence[Recorded] | None = None
        for then in stretches:
            self._plan(then)
            if now is not None:
                yield now
            now = then
        if now is not None:
            yield now

    def plain(self, record: PlainRecord) -> list[Place] | None:
        """Where the bytes of an ordinary file lie in the windows' memory, its headers being exactly
        what the record says; its hash is still to be looked at. None: `member` must tell.

        Raises MediumError when it cannot be read.
        """
        self._let_go()
        offset, values, _ = record
        headers, size = pax.file_header(values), values[-1]
        number, at = divmod(offset, self._block)
        window = self._ahead.window(number)
        if at + len(headers) + size <= self._block:
            begin = window.places[number - window.first][0] + at
            data = begin + len(headers)
            found, places = bytes(self._memory[begin:data]), [(data, data + size)]
            if self.windows != (window,):
                self.windows = (window,)
        else:
            found = self._bytes(self._gather(offset, len(headers)))
            places = self._gather(offset + len(headers), size)
        if found != headers:
            return None
        self._ends(offset + len(headers) + size)
        return places if size else []

    def member(self, record: MemberRecord) -> ReadMember:
        """The member that the record says lies there, its bytes still to come.

        Raises MediumDamaged when it is damaged or another one; other members can be asked for
        after that.
        """
        self._let_go()
        tar = self._tar_from(record.offset)
        entry = next(iter(tar), None)
        if entry is None:
            raise self._unlike(record, "the part ends before it")
        found = member_of_entry(tar, entry)
        if (found.name, found.piece) != (record.name, record.piece) or (
            found.attributes.kind is not record.attributes.kind
        ):
            raise self._unlike(record, f"it is {os.fsdecode(found.name)!r}")
        self._ends(tar.records.position + found.stored)
        return found

    def passed(self, record: Recorded) -> str:
        """What lies between this member and the one that was read before it, where nothing should;
        "" when nothing does or when damage does not let it be told. To be asked first."""
        end = self._end
        if end is None or end == record.offset:
            return ""
        if end > record.offset:
            return "it begins inside the one before it"
        self._let_go()
        entry: Entry | None = next(iter(self._tar_from(end)), None)
        name = "the end of the part" if entry is None else repr(os.fsdecode(entry.header.name))
        return f"{name} stands before it, which is not of the set"

    # --- inside

    def _plan(self, records: Sequence[Recorded]) -> None:
        """Order what the members take, in as few stretches as there are gaps."""
        begin = behind = 0
        for record in records:
            first = record.offset // self._block
            if first - behind > NEAR // self._block:
                self._order(begin, behind)
                begin = first
            behind = (record.offset + _HEADERS + record.stored - 1) // self._block + 1
        self._order(begin, behind)

    def _order(self, begin: int, behind: int) -> None:
        if begin - self._planned <= NEAR // self._block:
            begin = self._planned
        if begin < behind:
            self._ahead.order(begin, behind)
            self._planned = behind

    def _gather(self, offset: int, length: int) -> list[Place]:
        """Where bytes of the part lie, in all the windows that they reach over."""
        number, at = divmod(offset, self._block)
        found = []
        while length:
            window = self._ahead.window(number)
            if window not in self._held:
                self._pool.hold(window)
                self._held.append(window)
            begin = window.places[number - window.first][0] + at
            taken = min(length, self._block - at)
            found.append((begin, begin + taken))
            number, at, length = number + 1, 0, length - taken
        self.windows = tuple(self._held)
        return found

    def _bytes(self, places: list[Place]) -> bytes:
        return b"".join(bytes(self._memory[begin:end]) for begin, end in places)

    def _tar_from(self, offset: int) -> TarReader:
        return TarReader(RecordReader(self._records(offset // self._block), start=offset))

    def _records(self, number: int) -> NextRecord:
        def next_record() -> memoryview:
            nonlocal number
            window = self._ahead.window(number)
            self.windows = (window,)
            number += 1
            begin, end = window.places[number - 1 - window.first]
            return self._memory[begin:end]

        return next_record

    def _let_go(self) -> None:
        """Of what was given before: the next member is asked for, and may be damaged."""
        self._end = None
        if self._held:
            self._pool.release(self._held)
            self._held = []

    def _ends(self, end: int) -> None:
        self._end = end + -end % BLOCK

    def _unlike(self, record: MemberRecord, why: str) -> MediumDamaged:
        return MediumDamaged(
            f"{os.fsdecode(record.name)!r} does not lie at byte {record.offset} of part "
            f"{self._part.number}, as the catalogue says: {why}",
            hint="If the volume was written anew since, make the catalogue anew: "
            "splitmirror catalog rebuild",
        )


def require_part(medium: Medium, volume: VolumeReader, part: PartRecord) -> None:
    """Prove, by the volume's serial and the part's labels, that the part is where it is said to be.

    Raises WrongMedium when it is on another volume, or something else stands there.
    """
    require_volume(volume, part)
    assert part.position is not None
    try:
        medium.locate(part.position.object - LABEL_OBJECTS)
        labels = [read_record(medium) for _ in range(LABEL_OBJECTS - 1)]
        found = LabelGroup.parse(
            [label for label in labels if not isinstance(label, Mark)],
            part.position.tape_file + 1,
        )
        same = (found.set_id, found.part_number) == (part.set_id, part.number)
    except (MediumError, IndexError):
        same = False
    if not same:
        raise WrongMedium(
            f"part {part.number} of {part.set_id} is not at object {part.position.object} of "
            f"volume {volume.serial}, where the catalogue says",
            hint="If the volume was written anew since, make the catalogue anew: "
            "splitmirror catalog rebuild",
        )


def require_volume(volume: VolumeReader, part: PartRecord) -> None:
    """Raises WrongMedium when the part is on another volume than the one that is loaded."""
    if part.position is not None and part.position.volume == volume.serial:
        return
    wanted = "an unknown volume" if part.position is None else f"volume {part.position.volume}"
    raise WrongMedium(
        f"part {part.number} of the set is on {wanted}, and volume {volume.serial} is loaded",
        hint=f"Load {wanted} (for a virtual tape, name its file as the medium's path) and start "
        "again.",
        loaded=volume.serial,
    )

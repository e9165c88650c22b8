"""Read chosen members off a medium by their positions: forward, each record at most once.

Members that lie near one another are read in one go with what is between them, for a drive that
streams passes a gap sooner than it stops, locates and starts (SSC-3, LOCATE). Farther ones are
located, so that one file of a large set costs its own records and no more.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from splitmirror.archive.manifest import MemberRecord, PartRecord
from splitmirror.archive.reading import ReadMember, read_members
from splitmirror.errors import MediumDamaged, MediumError, WrongMedium
from splitmirror.media import Mark, Medium
from splitmirror.media.labels import LabelGroup
from splitmirror.media.walking import VolumeReader, read_record

LABEL_OBJECTS = 4  # before a part's first record: three labels and a filemark
NEAR = 8 << 20  # bytes that are rather read than located over: some 30 ms on tape


class PartReader:
    """The members of one part, asked for in the order of their offsets."""

    def __init__(self, medium: Medium, part: PartRecord) -> None:
        if part.position is None:
            raise ValueError(f"part {part.number} has no position")
        self._medium, self._part, self._object = medium, part, part.position.object
        self._members: Iterator[ReadMember] | None = None
        self._reached = 0  # a byte of the part that is surely not beyond the next member
        self.passed: list[bytes] = []  # the latest members that were met but not asked for

    def member(self, record: MemberRecord) -> ReadMember:
        """The member that the record says lies there, its bytes still to come.

        Raises MediumDamaged when it is damaged or another one; other members can be asked for
        after that.
        """
        if self._members is None or not 0 <= record.offset - self._reached <= NEAR:
            self._locate(record.offset)
        found = self._next(record)
        if (found.name, found.piece) != (record.name, record.piece) or (
            found.attributes.kind is not record.attributes.kind
        ):
            raise self._unlike(record, f"it is {os.fsdecode(found.name)!r}")
        return found

    def _locate(self, offset: int) -> None:
        self._medium.locate(self._object + offset // self._part.block_size)
        self._members = read_members(self._medium.read, start=offset)
        self._reached = offset

    def _next(self, record: MemberRecord) -> ReadMember:
        members, self._members = self._members, None  # given up unless all goes well
        self.passed.clear()
        assert members is not None
        for found in members:
            if found.offset > record.offset:
                raise self._unlike(record, f"the next begins at {found.offset}")
            if found.offset == record.offset:
                self._members, self._reached = members, found.offset + found.stored
                return found
            self.passed.append(found.name)
        raise self._unlike(record, "the part ends before it")

    def _unlike(self, record: MemberRecord, why: str) -> MediumDamaged:
        return MediumDamaged(
            f"{os.fsdecode(record.name)!r} does not lie at byte {record.offset} of part "
            f"{self._part.number}, as the catalogue says: {why}",
            hint="If the volume was written anew since, make the catalogue anew: "
            "splitmirror catalog rebuild",
        )


@contextmanager
def loaded(medium: Medium) -> Iterator[VolumeReader]:
    """The volume in the drive, to be read; unloaded in the end. Raises WrongMedium for a blank one
    and for one that is not ours."""
    medium.load(writable=False)
    try:
        yield VolumeReader(medium)
    finally:
        medium.unload()


def require_part(medium: Medium, volume: VolumeReader, part: PartRecord) -> None:
    """Prove, by the volume's serial and the part's labels, that the part is where it is said to be.

    Raises WrongMedium when it is on another volume, or something else stands there.
    """
    _require_volume(volume, part)
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


def part_reader(medium: Medium, volume: VolumeReader, part: PartRecord) -> PartReader:
    """Raises WrongMedium when the part is on another volume than the one that is loaded."""
    _require_volume(volume, part)
    return PartReader(medium, part)


def _require_volume(volume: VolumeReader, part: PartRecord) -> None:
    if part.position is not None and part.position.volume == volume.serial:
        return
    wanted = "an unknown volume" if part.position is None else f"volume {part.position.volume}"
    raise WrongMedium(
        f"part {part.number} of the set is on {wanted}, and volume {volume.serial} is loaded",
        hint=f"Load {wanted} (for a virtual tape, name its file as the medium's path) and start "
        "again.",
        loaded=volume.serial,
    )

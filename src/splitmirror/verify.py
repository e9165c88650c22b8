"""The recipe: a set is read back whole, and everything that can be wrong with it is told.

The labels are walked, the set's own catalogue is read, then each part: every member's header and
hash, that nothing else lies between the members, and the manifest against the catalogue. Damage to
one thing never hides another: reading goes on at the next position that is known.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest

from splitmirror.archive.ahead import Windows
from splitmirror.archive.manifest import MemberRecord, PartRecord
from splitmirror.archive.putting import check_plain, checked
from splitmirror.archive.reading import ReadMember, read_manifest
from splitmirror.archive.seeking import (
    PartReader,
    PlainRecord,
    Recorded,
    loaded,
    require_volume,
)
from splitmirror.catalog import Catalog
from splitmirror.catalog.rebuild import WARNING, record_sets, sets_on, temporary_catalog
from splitmirror.errors import MediumDamaged, MediumError, VerifyFailed
from splitmirror.media import Medium
from splitmirror.media.walking import VolumeReader
from splitmirror.progress import Progress, silent

_LISTED = 20  # damages that a message names


@dataclass(frozen=True, slots=True, kw_only=True)
class Damage:
    """Something that is not as it was written: where, and what."""

    where: str
    what: str


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyReport:
    """What was read back: `bytes` of stored data in `files` members of `parts` parts."""

    set_id: str
    parts: int
    files: int
    bytes: int
    damage: tuple[Damage, ...] = ()

    @property
    def sound(self) -> bool:
        return not self.damage

    def require_sound(self) -> None:
        """Raises VerifyFailed, with this report as a fact, when anything was damaged."""
        if self.sound:
            return
        named = [f"{found.where}: {found.what}" for found in self.damage[:_LISTED]]
        if len(self.damage) > _LISTED:
            named.append(f"and {len(self.damage) - _LISTED} more")
        raise VerifyFailed(
            f"the set {self.set_id} is damaged:\n  " + "\n  ".join(named),
            hint="Clean the drive and verify again. If it stays so, make a new backup; what is not "
            "named here can still be restored.",
            report=self,
        )


def verify(medium: Medium, set_id: str, *, progress: Progress = silent) -> VerifyReport:
    """Read a set (an id, the beginning of one, `latest`) back from the loaded volume alone, and
    check everything. Writes nothing. Gives all damage that was found; `progress` counts bytes.

    Raises NoSuchSet, WrongMedium, and MediumError only when the volume cannot be read at all.
    """
    with loaded(medium) as volume, temporary_catalog() as index:
        damage = _labels(volume)
        record_sets(medium, volume, index, only=set_id)
        backup_set = index.get(set_id)
        if not backup_set.complete:
            told = backup_set.facts.get(WARNING, "the set was cut off")
            damage.append(Damage(where="catalogue of the set", what=told))
        reading = _Reading(medium, index, backup_set.stored_bytes, progress)
        parts = index.parts(backup_set.set_id)
        for part in parts:
            require_volume(volume, part)
            reading.part(part)
        return VerifyReport(
            set_id=backup_set.set_id,
            parts=len(parts),
            files=reading.files,
            bytes=reading.bytes,
            damage=(*damage, *reading.damage),
        )


def _labels(volume: VolumeReader) -> list[Damage]:
    _, error = sets_on(volume)
    return [] if error is None else [Damage(where=f"volume {volume.serial}", what=str(error))]


class _Reading:
    """The parts of one set, read one after the other."""

    def __init__(self, medium: Medium, index: Catalog, total: int, progress: Progress) -> None:
        self.files = self.bytes = 0
        self.damage: list[Damage] = []
        self._medium, self._index, self._total, self._progress = medium, index, total, progress
        self._windows = Windows()

    def part(self, part: PartRecord) -> None:
        """Every member, then the manifest."""
        with PartReader(self._medium, part, self._windows) as reader:
            stretches = self._index.stretches(part.set_id, part=part.number)
            for records in reader.foreseeing(records for _, records in stretches):
                for record in records:
                    self._member(reader, part, record)
                self._progress(self.bytes, self._total)
        try:
            self._manifest(part)
        except MediumError as error:
            self._note(part, f"manifest: {error}")

    def _expected(self, part: PartRecord) -> Iterator[MemberRecord]:
        members = self._index.members(part.set_id, part=part.number)
        return (record for _, record in members)

    def _member(self, reader: PartReader, part: PartRecord, record: Recorded) -> None:
        try:
            _check(self._windows.memory, reader, record)
        except MediumError as error:
            self._note(part, f"{os.fsdecode(record.name)}: {error}")
        self.files += 1
        self.bytes += record.stored

    def _manifest(self, part: PartRecord) -> None:
        """The manifest that ends the part says of each member what the catalogue says."""
        assert part.position is not None
        first, within = divmod(part.manifest, part.block_size)
        self._medium.locate(part.position.object + first)
        manifest = read_manifest(self._medium.read, start=first * part.block_size + within)
        for found, expected in zip_longest(manifest, self._expected(part)):
            if found != expected:
                either = found or expected
                assert either is not None
                raise MediumDamaged(f"it differs from the catalogue at {os.fsdecode(either.name)}")
        if (manifest.set_id, manifest.number) != (part.set_id, part.number):
            raise MediumDamaged(f"it is of part {manifest.number} of {manifest.set_id}")
        if manifest.part.digest != part.digest or manifest.part.length != part.length:
            raise MediumDamaged("its hash or length is not that in the catalogue")

    def _note(self, part: PartRecord, what: str) -> None:
        self.damage.append(Damage(where=f"part {part.number}", what=what))


def _check(memory: memoryview, reader: PartReader, record: Recorded) -> None:
    if passed := reader.passed(record):
        raise MediumDamaged(passed)
    if isinstance(record, PlainRecord):
        places = reader.plain(record)
        if places is not None:  # its headers are what the record says
            check_plain(memory, places, record)
            return
        record = record.in_full()
    member = reader.member(record)
    for _ in checked(member, record):
        pass
    _same_attributes(member, record)


def _same_attributes(member: ReadMember, record: MemberRecord) -> None:
    if member.attributes != record.attributes:
        raise MediumDamaged("its owner, mode, times or other attributes are not those recorded")

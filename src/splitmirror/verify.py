"""The recipe: a set is read back whole, and everything that can be wrong with it is told.

The set's own catalogue is read, then on each of its volumes the labels are walked and each part is
read: every member's header and hash, that nothing else lies between the members, and the manifest
against the catalogue. Damage to one thing never hides another: reading goes on at the next position
that is known.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import zip_longest

from splitmirror.archive.ahead import Windows
from splitmirror.archive.manifest import MemberRecord, PartRecord
from splitmirror.archive.putting import check_plain, checked
from splitmirror.archive.reading import ReadMember, read_manifest
from splitmirror.archive.seeking import PartReader, PlainRecord, Recorded
from splitmirror.bringing import Bringing, OnVolume, Told, on_volumes
from splitmirror.catalog import LATEST, Catalog, Lookup
from splitmirror.catalog.rebuild import (
    Walked,
    record_one,
    record_sets,
    sets_on,
    temporary_catalog,
    walk,
)
from splitmirror.errors import MediumDamaged, MediumError, VerifyFailed
from splitmirror.media import Medium
from splitmirror.media.labels import TapeFileKind
from splitmirror.media.supply import Loaded, ReadSupply
from splitmirror.media.walking import SetOnVolume
from splitmirror.model import WARNING
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
        _require_none(self.damage, f"the set {self.set_id}", self)


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeReport:
    """What was read back of each set that has parts on a volume, of these parts alone. `elsewhere`:
    the sets whose own catalogue is not on this volume: they go on on another, or were cut off.
    `damage`: of the volume's labels."""

    serial: str
    sets: tuple[VerifyReport, ...]
    elsewhere: tuple[str, ...] = ()
    damage: tuple[Damage, ...] = ()

    @property
    def sound(self) -> bool:
        return not self.damage and all(report.sound for report in self.sets)

    def require_sound(self) -> None:
        """Raises VerifyFailed, with this report as a fact, when anything was damaged."""
        of_sets = [
            Damage(where=f"{report.set_id}, {found.where}", what=found.what)
            for report in self.sets
            for found in report.damage
        ]
        _require_none([*self.damage, *of_sets], f"volume {self.serial}", self)


def _require_none(damage: Sequence[Damage], what: str, report: object) -> None:
    if not damage:
        return
    named = [f"{found.where}: {found.what}" for found in damage[:_LISTED]]
    if len(damage) > _LISTED:
        named.append(f"and {len(damage) - _LISTED} more")
    raise VerifyFailed(
        f"{what} is damaged:\n  " + "\n  ".join(named),
        hint="Clean the drive and verify again. If it stays so, make a new backup; what is not "
        "named here can still be restored.",
        report=report,
    )


def verify(
    supply: ReadSupply,
    set_id: str,
    *,
    among: Sequence[str] = (),
    progress: Progress = silent,
) -> VerifyReport:
    """Read a set (an id, the beginning of one, `latest`) back from its volumes alone, and check
    everything. Writes nothing. Gives all damage that was found; `progress` counts bytes.

    `among`: the volumes on which the set is, that with its own catalogue the last; without them it
    is looked for on all that are at hand.

    Raises NoSuchSet, NoSuchVolume, WrongMedium, and MediumError only when a volume cannot be read
    at all.
    """
    with Bringing(supply) as bringing, temporary_catalog() as index:
        _record(supply, bringing, index, set_id, among or supply.at_hand())
        backup_set = index.get(set_id)
        damage = []
        if not backup_set.complete:
            told = backup_set.facts.get(WARNING, "the set was cut off")
            damage.append(Damage(where="catalogue of the set", what=told))
        parts = index.parts(backup_set.set_id)
        volumes = on_volumes(parts, {part.number for part in parts})
        verifying = _Verifying(bringing, index, Told(progress, backup_set.stored_bytes))
        bringing.each(volumes, verifying.volume)
        return VerifyReport(
            set_id=backup_set.set_id,
            parts=len(parts),
            files=verifying.files,
            bytes=verifying.bytes,
            damage=(*damage, *(found for one in volumes for found in verifying.damage[one.serial])),
        )


def verify_volume(supply: ReadSupply, serial: str, *, progress: Progress = silent) -> VolumeReport:
    """Read all of a volume back, set by set, and check every hash. Writes nothing, and asks no
    catalogue but those on the volume. Gives all damage that was found; `progress` counts bytes.

    Raises NoSuchVolume, WrongMedium, and MediumError only when the volume cannot be read at all.
    """
    with Bringing(supply) as bringing:
        loaded = bringing.bring(serial)
        sets, error = sets_on(loaded[1])
        total = sum(file.blocks * file.block_size for found in sets for file in found.files)
        told = Told(progress, total)
        reports = tuple(_verify_on(loaded, found, bringing, told) for found in sets)
        progress(total, total)
        return VolumeReport(
            serial=serial,
            sets=reports,
            elsewhere=tuple(found.set_id for found in sets if not found.complete),
            damage=() if error is None else (Damage(where="labels", what=str(error)),),
        )


def _verify_on(loaded: Loaded, found: SetOnVolume, bringing: Bringing, told: Told) -> VerifyReport:
    """The parts of one set that are on the volume."""
    medium, volume = loaded
    with temporary_catalog() as index:
        record_one(loaded, index, found)
        reading = _Reading(medium, index, bringing, told)
        parts = [part for part in index.parts(found.set_id) if _is_on(part, volume.serial)]
        for part in parts:
            reading.part(part)
        whole = index.get(found.set_id).complete
    numbers = {part.number for part in parts}
    unread = [
        Damage(where=f"part {file.part_number}", what="its manifest cannot be read")
        for file in found.files
        if file.kind is TapeFileKind.PART and file.part_number not in numbers
    ]
    if found.complete and not whole:
        unread.append(Damage(where="catalogue of the set", what="it cannot be read"))
    return VerifyReport(
        set_id=found.set_id,
        parts=len(parts),
        files=reading.files,
        bytes=reading.bytes,
        damage=(*reading.damage, *unread),
    )


def _is_on(part: PartRecord, serial: str) -> bool:
    return part.position is not None and part.position.volume == serial


def _record(
    supply: ReadSupply, bringing: Bringing, index: Catalog, set_id: str, serials: Sequence[str]
) -> None:
    """The set's own catalogue; its volume stays there. Without one, or where it is not known which
    set is meant, all that the volumes tell."""
    if set_id != LATEST or len(serials) == 1:
        for serial in reversed(serials):
            if walk(bringing.bring(serial), index, Walked(), only=set_id):
                return
            bringing.let_go(serial)
    record_sets(supply, index, serials=serials, only=set_id)


class _Verifying:
    """The volumes of one set, each read once; on several threads where there are several drives."""

    def __init__(self, bringing: Bringing, index: Lookup, told: Told) -> None:
        self.files = self.bytes = 0
        self.damage: dict[str, list[Damage]] = {}
        self._bringing, self._index, self._told = bringing, index, told
        self._adding = threading.Lock()

    def volume(self, loaded: Loaded, wanted: OnVolume) -> None:
        """The labels, then every part."""
        medium, volume = loaded
        _, error = sets_on(volume)
        found = [] if error is None else [Damage(where=f"volume {volume.serial}", what=str(error))]
        with closing(self._index.beside()) as index:
            reading = _Reading(medium, index, self._bringing, self._told)
            for part in wanted.parts:
                reading.part(part)
        with self._adding:
            self.files += reading.files
            self.bytes += reading.bytes
            self.damage[wanted.serial] = found + reading.damage


class _Reading:
    """The parts of one volume, read one after the other."""

    def __init__(self, medium: Medium, index: Lookup, bringing: Bringing, told: Told) -> None:
        self.files = self.bytes = 0
        self.damage: list[Damage] = []
        self._medium, self._index, self._bringing, self._told = medium, index, bringing, told
        self._windows = Windows()

    def part(self, part: PartRecord) -> None:
        """Every member, then the manifest."""
        number = range(part.number, part.number + 1)
        with PartReader(self._medium, part, self._windows) as reader:
            stretches = self._index.stretches(part.set_id, parts=number)
            for records in reader.foreseeing(records for _, records in stretches):
                self._bringing.check()
                for record in records:
                    self._member(reader, part, record)
                self._told.add(sum(record.stored for record in records))
        try:
            self._manifest(
                part, (record for _, record in self._index.members(part.set_id, parts=number))
            )
        except MediumError as error:
            self._note(part, f"manifest: {error}")

    def _member(self, reader: PartReader, part: PartRecord, record: Recorded) -> None:
        try:
            _check(self._windows.memory, reader, record)
        except MediumError as error:
            self._note(part, f"{os.fsdecode(record.name)}: {error}")
        self.files += 1
        self.bytes += record.stored

    def _manifest(self, part: PartRecord, wanted: Iterator[MemberRecord]) -> None:
        """The manifest that ends the part says of each member what the catalogue says."""
        assert part.position is not None
        first, within = divmod(part.manifest, part.block_size)
        self._medium.locate(part.position.object + first)
        manifest = read_manifest(self._medium.read, start=first * part.block_size + within)
        for found, expected in zip_longest(manifest, wanted):
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

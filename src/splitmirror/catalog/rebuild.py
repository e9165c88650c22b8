"""The catalogue made anew from volumes alone.

The labels tell which tape files belong to which set, so the data are passed over. A set whose last
tape file is found is read from it, on whichever of its volumes that is: it names the others. One
that was cut off, or whose last tape file is damaged, is put together from the manifests of its
parts on all volumes, each part being read through for it, and is marked incomplete. The volumes may
come in any order, together or one by one.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, time
from pathlib import Path

from splitmirror.archive.manifest import MemberRecord, PartRecord
from splitmirror.archive.reading import read_manifest
from splitmirror.archive.set_catalogue import SetCatalogue
from splitmirror.catalog.looking import LATEST
from splitmirror.catalog.rows import UNKNOWN
from splitmirror.catalog.store import Catalog
from splitmirror.errors import MediumDamaged, MediumError, WrongMedium
from splitmirror.media import Medium
from splitmirror.media.labels import TapeFileKind
from splitmirror.media.supply import Loaded, ReadSupply
from splitmirror.media.walking import SetOnVolume, TapeFile, VolumeReader
from splitmirror.model import WARNING, BackupSet, Check, MediaPosition, Mode
from splitmirror.progress import Progress, silent


@dataclass(slots=True)
class Walked:
    """What was learnt of the volumes that were walked. `whole`: the sets whose own catalogues were
    read; `rest`: those of which only parts were seen, and on which volumes; `files`: where on each
    volume that could be walked to its end which set has a tape file; `bytes`: the data of the tape
    files that were seen on each; `damage`: what kept one from its end, first."""

    whole: list[str] = field(default_factory=list)
    rest: dict[str, list[tuple[str, SetOnVolume]]] = field(default_factory=dict)
    files: dict[str, set[tuple[str, MediaPosition]]] = field(default_factory=dict)
    bytes: dict[str, int] = field(default_factory=dict)
    damage: MediumDamaged | None = None

    @property
    def ids(self) -> set[str]:
        return {*self.whole, *self.rest}


def record_sets(
    supply: ReadSupply,
    catalog: Catalog,
    *,
    serials: Sequence[str] | None = None,
    only: str | None = None,
    held: str = "",
    walked: Walked | None = None,
    progress: Progress = silent,
) -> list[BackupSet]:
    """Record every set of these volumes (None: of all that are at hand), or those that `only` (an
    id, the beginning of one, or `latest`) may mean; returns them.

    A second call is harmless, and what the catalogue knows beyond the medium (how a run ended)
    stays; a set that is complete there is never replaced by less, unless a part of it is missing
    where its own catalogue has it. Of several volumes, those that are blank or not ours are passed
    over. `held`: see Catalog.record. `walked`: gets what was learnt. `progress` counts volumes.

    Raises NoSuchVolume, WrongMedium; MediumDamaged where a volume's labels end in damage, after all
    that could be read was recorded.
    """
    serials = supply.at_hand() if serials is None else serials
    walked = walked or Walked()
    for done, serial in enumerate(serials):
        progress(done, len(serials))
        try:
            with supply.to_read(serial) as loaded:
                walk(loaded, catalog, walked, only=only, held=held)
        except WrongMedium:
            if len(serials) == 1:
                raise
    progress(len(serials), len(serials))
    for set_id, places in walked.rest.items():
        known = _known(catalog, set_id)
        if known is None or not known.complete:
            for serial, found in places:
                with supply.to_read(serial) as loaded:
                    _from_manifests(loaded, catalog, found, held)
    for set_id in walked.whole:
        _mark_missing(catalog, set_id, walked)
    if walked.damage is not None and (only is None or not walked.ids):
        raise walked.damage
    return [known for known in catalog.sets() if known.set_id in walked.ids]


def walk(
    loaded: Loaded, catalog: Catalog, walked: Walked, *, only: str | None, held: str = ""
) -> bool:
    """Walk a volume and record the sets whose own catalogues are on it; whether there was one."""
    _, volume = loaded
    sets, damage = sets_on(volume)
    walked.damage = walked.damage or damage
    there = (file.blocks * file.block_size for found in sets for file in found.files)
    walked.bytes[volume.serial] = sum(there)
    if damage is None:
        walked.files[volume.serial] = {
            (found.set_id, replace(file.position, object=file.data))
            for found in sets
            for file in found.files
        }
    recorded = False
    for found in sets:
        if only is None or _means(only, found, sets):
            if _from_catalogue(loaded, catalog, found.files[-1], held):
                recorded = True
                walked.whole.append(found.set_id)
                walked.rest.pop(found.set_id, None)
            elif found.set_id not in walked.whole:
                walked.rest.setdefault(found.set_id, []).append((volume.serial, found))
    return recorded


@contextmanager
def temporary_catalog() -> Iterator[Catalog]:
    """An empty catalogue that is gone in the end."""
    with (
        tempfile.TemporaryDirectory(prefix="splitmirror-") as directory,
        Catalog.open(Path(directory) / "catalog.db") as catalog,
    ):
        yield catalog


def sets_on(volume: VolumeReader) -> tuple[list[SetOnVolume], MediumDamaged | None]:
    """The sets on the volume, and the damage at which it could not be walked further."""
    files: dict[str, list[TapeFile]] = {}
    damage = None
    try:
        for file in volume.files():
            files.setdefault(file.set_id, []).append(file)
    except MediumDamaged as error:
        damage = error
    return [SetOnVolume(set_id=key, files=tuple(found)) for key, found in files.items()], damage


def _means(only: str, found: SetOnVolume, sets: Sequence[SetOnVolume]) -> bool:
    if only == LATEST:
        complete = [known for known in sets if known.complete]
        return bool(complete) and found is complete[-1]
    return found.set_id.startswith(only)


def record_one(loaded: Loaded, catalog: Catalog, found: SetOnVolume) -> None:
    """Record one set of a volume: by its own catalogue if that is there and can be read, else what
    its parts on this volume say."""
    if not _from_catalogue(loaded, catalog, found.files[-1], ""):
        _from_manifests(loaded, catalog, found, "")


def _known(catalog: Catalog, set_id: str) -> BackupSet | None:
    return next((old for old in catalog.sets() if old.set_id == set_id), None)


def _from_catalogue(loaded: Loaded, catalog: Catalog, last: TapeFile, held: str) -> bool:
    """Record a set by its own catalogue. False: its last tape file here is none, or is damaged;
    then the parts' manifests tell nearly as much."""
    if last.kind is not TapeFileKind.CATALOGUE:
        return False
    medium, volume = loaded
    known = _known(catalog, last.set_id)
    try:
        volume.open(last)
        read = SetCatalogue(medium.read)
        record = read.backup_set
        if known is not None and known.complete:  # the medium was written before the run's end
            record = replace(record, ended=known.ended, phases=known.phases)
        catalog.record(record, read.parts, read, held=held)
    except MediumError:
        return False
    return True


def _mark_missing(catalog: Catalog, set_id: str, walked: Walked) -> None:
    """A set that lacks a part, where its own catalogue has it, is not complete."""
    missing = []
    for part in catalog.parts(set_id):
        assert part.position is not None  # a catalogue has none without
        there = walked.files.get(part.position.volume)
        if there is not None and (set_id, part.position) not in there:
            missing.append(f"{part.number} (volume {part.position.volume})")
    if missing:
        record = catalog.get(set_id)
        told = f"not on the media any more: part {', '.join(missing)}"
        catalog.amend(replace(record, complete=False, facts={**record.facts, WARNING: told}))


def _from_manifests(loaded: Loaded, catalog: Catalog, found: SetOnVolume, held: str) -> None:
    """Add the parts on a volume to what is known of a set that has no catalogue of its own."""
    medium, volume = loaded
    known = _known(catalog, found.set_id)
    record = known or _cut_off(found)
    elsewhere = [
        part
        for part in catalog.parts(found.set_id)
        if part.position is not None and part.position.volume != volume.serial
    ]
    parts, damaged = list(elsewhere), list[int]()
    there = {part.number for part in elsewhere}
    files = [
        file
        for file in found.files
        if file.kind is TapeFileKind.PART and file.part_number not in there
    ]

    def members() -> Iterator[tuple[int, MemberRecord]]:
        for part in elsewhere:
            numbers = range(part.number, part.number + 1)
            yield from catalog.members(found.set_id, parts=numbers)
        yield from _members(medium, volume, files, parts, damaged)

    catalog.record(record, parts, members(), held=held)
    told = f"cut off or damaged; only {len(parts)} parts' manifests are known"
    if damaged:
        told += f"; damaged: part {', '.join(map(str, damaged))}"
    catalog.amend(
        replace(
            record,
            complete=False,
            files=sum(part.members for part in parts),
            stored_bytes=sum(part.stored for part in parts),
            facts={**record.facts, WARNING: told},
        )
    )


def _members(
    medium: Medium,
    volume: VolumeReader,
    files: Iterable[TapeFile],
    parts: list[PartRecord],
    damaged: list[int],
) -> Iterator[tuple[int, MemberRecord]]:
    """The members of all parts that can be read to their end; these are added to `parts`. A part
    that was written twice is taken once."""
    for file in files:
        if any(part.number == file.part_number for part in parts):
            continue
        members: list[tuple[int, MemberRecord]] = []
        try:
            volume.open(file)
            manifest = read_manifest(medium.read)
            members.extend((manifest.number, record) for record in manifest)
        except MediumError:
            damaged.append(file.part_number)
            continue
        place = replace(file.position, object=file.data)
        parts.append(replace(manifest.part, position=place))
        yield from members


def _cut_off(found: SetOnVolume) -> BackupSet:
    """What is known of a set of which only parts are there."""
    return BackupSet(
        set_id=found.set_id,
        source=UNKNOWN,
        host=UNKNOWN,
        database=UNKNOWN,
        mode=Mode.FREEZE,
        check=Check.QUIESCED,
        mirror=UNKNOWN,
        medium=UNKNOWN,
        started=datetime.combine(found.files[0].created, time(), UTC),
    )

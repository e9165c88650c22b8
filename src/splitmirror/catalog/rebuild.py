"""The catalogue made anew from a volume alone.

The labels tell which tape files belong to which set, so the data are passed over. A set whose last
tape file is there is read from it. One that was cut off, or whose last tape file is damaged, is put
together from the manifests of its parts, each part being read through for it, and is marked
incomplete.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, time
from pathlib import Path

from splitmirror.archive.manifest import MemberRecord, PartRecord
from splitmirror.archive.reading import read_manifest
from splitmirror.archive.seeking import loaded
from splitmirror.archive.set_catalogue import SetCatalogue
from splitmirror.catalog.looking import LATEST
from splitmirror.catalog.store import Catalog
from splitmirror.errors import MediumDamaged, MediumError
from splitmirror.media import Medium
from splitmirror.media.labels import TapeFileKind
from splitmirror.media.walking import SetOnVolume, TapeFile, VolumeReader
from splitmirror.model import BackupSet, Check, Mode
from splitmirror.progress import Progress, silent

UNKNOWN = "?"  # what the manifests do not tell of a set that was cut off
WARNING = "warning"  # the fact that says so


def rebuild(medium: Medium, catalog: Catalog, *, progress: Progress = silent) -> list[BackupSet]:
    """Record every set of the volume; returns them. A second call is harmless, and what the
    catalogue knows beyond the medium (how a run ended) stays; a set that is complete there is never
    replaced by less. `progress` counts sets.

    Raises WrongMedium; MediumDamaged where the volume's labels end in damage, after what lies
    before it was recorded.
    """
    with loaded(medium) as volume:
        return record_sets(medium, volume, catalog, progress=progress)


def record_sets(
    medium: Medium,
    volume: VolumeReader,
    catalog: Catalog,
    *,
    only: str | None = None,
    progress: Progress = silent,
) -> list[BackupSet]:
    """`rebuild` for a volume that is loaded, of all sets or of those that `only` (an id, the
    beginning of one, or `latest`) may mean."""
    sets, damage = sets_on(volume)
    chosen = [found for found in sets if only is None or _means(only, found, sets)]
    for done, found in enumerate(chosen):
        progress(done, len(chosen))
        _record(medium, volume, catalog, found)
    progress(len(chosen), len(chosen))
    ids = {found.set_id for found in chosen}
    if damage is not None and (only is None or not ids):
        raise damage
    return [known for known in catalog.sets() if known.set_id in ids]


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


def _record(medium: Medium, volume: VolumeReader, catalog: Catalog, found: SetOnVolume) -> None:
    known = next((old for old in catalog.sets() if old.set_id == found.set_id), None)
    last = found.files[-1]
    if last.kind is TapeFileKind.CATALOGUE:
        try:
            _from_catalogue(medium, volume, catalog, last, known)
            return
        except MediumError:
            pass  # its last tape file is damaged: the parts' manifests tell nearly as much
    if known is None or not known.complete:
        _from_manifests(medium, volume, catalog, found, known)


def _from_catalogue(
    medium: Medium,
    volume: VolumeReader,
    catalog: Catalog,
    file: TapeFile,
    known: BackupSet | None,
) -> None:
    volume.open(file)
    read = SetCatalogue(medium.read)
    record = read.backup_set
    if known is not None and known.complete:  # the medium was written before the run's end
        record = replace(record, ended=known.ended, phases=known.phases)
    catalog.record(record, read.parts, read)


def _from_manifests(
    medium: Medium,
    volume: VolumeReader,
    catalog: Catalog,
    found: SetOnVolume,
    known: BackupSet | None,
) -> None:
    parts: list[PartRecord] = []
    damaged: list[int] = []
    record = known or _cut_off(found)
    files = [file for file in found.files if file.kind is TapeFileKind.PART]
    catalog.record(record, parts, _members(medium, volume, files, parts, damaged))
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
    """The members of all parts that can be read to their end; these are added to `parts`."""
    for file in files:
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

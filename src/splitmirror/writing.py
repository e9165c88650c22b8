"""From a trusted split to a set on the media: parts, then the set's own catalogue.

The parts are divided into as many stretches of the set's order as there are streams; each stream
has a drive, a reader of the leg and a writer of its own, and writes its stretch on as many volumes
as that takes. A part is never divided between volumes: where a volume may not hold it any more it
is given up there and written again from its beginning on the next one, for the split mirror can be
read again. docs/adr/0019-a-set-over-several-volumes.md says why.

Everything is durable part by part. After a crash the medium is asked which parts are whole; what
the run had noted of them lies in its directory, and each stream goes on behind its last one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from splitmirror import journal as journals
from splitmirror.archive.manifest import MemberRecord, PartRecord, member_of, parse_line
from splitmirror.archive.set_catalogue import write_set_catalogue
from splitmirror.errors import EndOfMedium, LegError
from splitmirror.extents.views import LegView
from splitmirror.journal import Journal, Record
from splitmirror.media.labels import TapeFileKind
from splitmirror.media.supply import Supply
from splitmirror.media.volume import VolumeWriter
from splitmirror.model import BackupSet, Speed, VolumeUse
from splitmirror.notes import Notes, json_of
from splitmirror.progress import Progress
from splitmirror.stream.speed import speed_of
from splitmirror.stream.together import together
from splitmirror.streams import Stream
from splitmirror.stretches import Job, Sharing, volume_of

_CATALOGUE_ROOM = 64 << 10  # bytes of the set's catalogue beside the lines of parts and members
_PART_LINE = 512  # bytes that the line of a part takes, at most


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """A set that is whole on the media."""

    backup_set: BackupSet
    parts: tuple[PartRecord, ...]
    notes: Notes

    def members(self) -> Iterator[tuple[int, MemberRecord]]:
        """Every member with its part's number, in the order of the parts."""
        for line in self.notes.lines(self.parts):
            document = parse_line(line)
            yield document["part"], member_of(document)


def write_set(
    job: Job,
    *,
    supply: Supply,
    directory: Path,
    journal: Journal,
    progress: Progress,
    confirm: Callable[[], None],
) -> Written:
    """Write what of the set is not yet whole on the media, then its catalogue and its end.

    `confirm` is called when the last byte was read off the leg, and raises if it is not that of the
    split any more. Raises NoRoom when a part is larger than a volume, before anything is written
    where that is known; EndOfMedium, MediumError, LegError. What was written before stays a
    readable, incomplete set, and a second call goes on behind it.
    """
    notes = Notes(directory, journal)
    records = journals.read(directory)
    sharing = Sharing(job, supply, notes, journal, progress, records)
    began_s = time.monotonic()
    streams = _write_parts(sharing)
    speed = _speed_of(sharing, streams, time.monotonic() - began_s)
    renewed = sum(counts.renewed for stream in streams for counts in stream.counts)
    journal.record("read", renewed=renewed)
    confirm()
    maps = replace(job.backup_set.maps, renewed=job.backup_set.maps.renewed + renewed)
    backup_set = replace(job.backup_set, speed=speed, maps=maps)
    written = _write_catalogue(sharing, streams, backup_set, records)
    journal.record("written", set=json_of(written.backup_set))
    return written


def whole_set(backup_set: BackupSet, notes: Notes) -> Written:
    """The set as it is on the media, by what was noted of its parts."""
    parts = tuple(notes.parts())
    finished = replace(
        backup_set,
        complete=True,
        files=sum(part.members for part in parts),
        stored_bytes=sum(part.stored for part in parts),
    )
    return Written(backup_set=finished, parts=parts, notes=notes)


def _write_parts(sharing: Sharing) -> list[Stream]:
    """All parts that are not whole yet, by as many streams at once as there are drives. The first
    volumes are there before the first block is written."""
    streams: list[Stream] = []
    job, supply = sharing.job, sharing.supply
    supply.take()
    for number in range(min(supply.streams, len(sharing.todo))):
        stream, stretch = Stream(sharing, streams, number), sharing.next_stretch()
        assert stretch is not None
        stream.begin(stretch)
        stream.require_room()

    def stop(error: BaseException) -> None:
        for stream in streams:
            stream.stop(error)

    if streams:
        with LegView(job.leg, job.trusted.trees) as view:
            together([partial(stream.run, view=view) for stream in streams], stop)
    return streams


def _speed_of(sharing: Sharing, streams: Sequence[Stream], seconds: float) -> Speed:
    return speed_of(
        sharing.written,
        seconds,
        [counts for stream in streams for counts in stream.counts],
        written_s=sum(stream.busy_s for stream in streams),
        for_medium_s=sum(stream.waited_s for stream in streams),
        streams=max(1, len(streams)),
        leg_rate=sharing.job.leg_rate,
    )


# --- the set's own catalogue


def _write_catalogue(
    sharing: Sharing, streams: list[Stream], backup_set: BackupSet, records: Sequence[Record]
) -> Written:
    """The set's catalogue, on a volume on which the set has been written or, where it does not fit
    there, on the next; then the end of the set on every volume that is still in a drive."""
    parts = sharing.notes.parts()
    number = len(parts) + 1
    stream = _stream_for_catalogue(sharing, streams, records, number)
    for other in streams:
        if other is not stream:
            other.leave()
    while True:
        volumes = _volumes(sharing, parts, stream.serial)
        written = whole_set(replace(backup_set, volumes=volumes), sharing.notes)
        if written.backup_set.files != sharing.job.members:
            raise LegError(
                f"{written.backup_set.files} of {sharing.job.members} members are on the media",
                hint="The set is not whole. Back up anew, and report this: it must not happen.",
            )
        untouched = stream.volume.end.tape_file == 0
        try:
            if not _catalogue_is_whole(stream.volume, backup_set.set_id):
                sharing.journal.record("catalogue", volume=stream.serial)
                _write_catalogue_here(sharing.job, stream.volume, written)
            break
        except EndOfMedium:
            if untouched:
                raise
            stream.next_volume(number, full=True)
    stream.leave()
    return written


def _stream_for_catalogue(
    sharing: Sharing, streams: list[Stream], records: Sequence[Record], from_part: int
) -> Stream:
    """The one with the last part of the set; after a crash on the volume where the catalogue was
    begun, or where the last part is."""
    if streams:
        return max(streams, key=lambda stream: stream.last)
    stream = Stream(sharing, streams, 0)
    begun = [record.facts["volume"] for record in records if record.kind == "catalogue"]
    begun_on = begun[-1] if begun and begun[-1] not in sharing.full else ""
    stream.go_on(begun_on or sharing.spare(()), from_part)
    return stream


def _volumes(
    sharing: Sharing, parts: Sequence[PartRecord], catalogue: str
) -> tuple[VolumeUse, ...]:
    """The volumes of the set in the order of their first parts, that of the catalogue the last."""
    serials = dict.fromkeys(volume_of(part) for part in parts)
    serials.pop(catalogue, None)
    return tuple(sharing.use_of(serial, parts) for serial in (*serials, catalogue))


def _write_catalogue_here(job: Job, volume: VolumeWriter, written: Written) -> None:
    text = written.notes.size(written.parts)
    most = text + len(written.parts) * _PART_LINE + _CATALOGUE_ROOM
    try:
        volume.begin_file(
            TapeFileKind.CATALOGUE,
            written.backup_set.set_id,
            len(written.parts) + 1,
            job.trusted.block_size,
            most=most + job.trusted.block_size,
        )
        write_set_catalogue(
            volume.write,
            backup_set=written.backup_set,
            parts=written.parts,
            files=written.notes.text(written.parts),
            block_size=job.trusted.block_size,
        )
        volume.end_file()
    except BaseException:
        volume.abandon_file()
        raise


def _catalogue_is_whole(volume: VolumeWriter, set_id: str) -> bool:
    return any(
        file.set_id == set_id and file.kind is TapeFileKind.CATALOGUE for file in volume.files
    )

"""From a trusted split to a set on the medium: parts, then the set's own catalogue.

Everything is durable part by part. After a crash the medium is asked which parts are whole; what
the run had noted of them lies in its directory, and the next part is written behind them. A part
that was cut off is written again from its beginning: the split mirror can be read again.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import IO, TypeVar

import msgspec
from blake3 import blake3

from splitmirror.archive.manifest import (
    MemberRecord,
    PartRecord,
    member_of,
    parse_line,
)
from splitmirror.archive.part import PartWriter, member_lines, member_text
from splitmirror.archive.set_catalogue import part_line, part_of, write_set_catalogue
from splitmirror.databases import RedoFile, Root
from splitmirror.errors import JournalDamaged, LegError, NoRoom, NoSuchFile, WrongMedium
from splitmirror.extents.views import LegView
from splitmirror.journal import Journal
from splitmirror.journal import read as read_journal
from splitmirror.media import END_OF_DATA, Medium
from splitmirror.media.labels import TapeFileKind
from splitmirror.media.volume import VolumeWriter, open_for_append
from splitmirror.media.walking import TapeFile, VolumeReader
from splitmirror.model import BackupSet, Leg, MediaPosition, Origin, Speed, Tree
from splitmirror.progress import Progress
from splitmirror.stream.behind import WriteBehind
from splitmirror.stream.member import Member
from splitmirror.stream.pipeline import LegSource, Stretch, file_member
from splitmirror.stream.plan import Plan
from splitmirror.stream.speed import speed_of

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Trusted:
    """What must outlive a crash once the split is trusted, beside the plan.

    A run that is taken up again goes on as it began, whatever the configuration says by then.
    """

    backup_set: BackupSet
    trees: tuple[Tree, ...]
    copied: tuple[RedoFile, ...]
    volume: str
    block_size: int
    part_size: int

    def save(self, path: Path) -> str:
        """Durable when it returns; gives the digest that `load` wants."""
        text = json_of(self).encode()
        write_durably(path, text)
        return blake3(text).hexdigest()

    @classmethod
    def load(cls, path: Path, digest: str) -> Trusted:
        """Raises JournalDamaged when the file is not what was saved."""
        text = path.read_bytes() if path.exists() else b""
        if blake3(text).hexdigest() != digest:
            raise JournalDamaged(
                f"{path} is not what the journal says it is",
                hint="The backup cannot go on; back up anew.",
            )
        return from_json(text, cls)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What is to be written. `backup_set` is as it will stand in the set's own catalogue."""

    trusted: Trusted
    backup_set: BackupSet
    plan: Plan
    leg: Leg
    titles: Mapping[bytes, str]
    leg_rate: float | None = None  # bytes a second, where it was measured

    @property
    def members(self) -> int:
        """How many members the whole set has."""
        return sum(len(part.items) for part in self.plan.parts) + len(self.trusted.copied)


class Notes:
    """What the run notes of each part that is whole on the medium: its manifest, in the run's
    directory, and the part's own line, in the journal. So a part costs two syncs, and each takes
    as long as reading many MiB where the run's disk is busy."""

    def __init__(self, directory: Path, journal: Journal) -> None:
        self._directory, self._journal = directory, journal

    @contextmanager
    def manifest(self, number: int) -> Iterator[IO[bytes]]:
        """An empty file for the manifest of a part; written when this is left. Raises NoRoom."""
        path = self._manifest(number)
        with self._room(path), path.open("w+b") as file:
            yield file

    def note(self, part: PartRecord) -> None:
        """Durable when it returns, and its manifest too. Raises NoRoom."""
        path = self._manifest(part.number)
        with self._room(path):
            sync(path)
            sync(self._directory)
        self._journal.record("part", number=part.number, line=part_line(part).decode())

    def parts(self) -> list[PartRecord]:
        """In order, from the first on, as far as there is no gap."""
        records = [record for record in read_journal(self._directory) if record.kind == "part"]
        noted = {record.facts["number"]: record.facts["line"].encode() for record in records}
        found: list[PartRecord] = []
        while (line := noted.get(len(found) + 1)) is not None:
            found.append(part_of(line))
        return found

    def lines(self, parts: Sequence[PartRecord]) -> Iterator[bytes]:
        """The members' lines of these parts."""
        for part in parts:
            with self._manifest(part.number).open("rb") as file:
                yield from member_lines(file)

    def text(self, parts: Sequence[PartRecord]) -> Iterator[bytes]:
        """The same in large chunks, as the set's catalogue has them."""
        for part in parts:
            with self._manifest(part.number).open("rb") as file:
                yield from member_text(file)

    def _manifest(self, number: int) -> Path:
        return self._directory / f"manifest-{number:04d}"

    @contextmanager
    def _room(self, path: Path) -> Iterator[None]:
        """Tell a full disk under the run's directory from one of the medium's."""
        try:
            yield
        except OSError as error:
            raise NoRoom(
                f"{path} cannot be written: {error.strerror}", hint=f"Make room in {path.parent}."
            ) from error


class Noting:
    """Notes one part after another on a thread, one at a time. A crash before a part is noted has
    it written once more. Leaving the `with` waits, and passes over what went wrong then."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="noting")
        self._under_way: Future[None] | None = None

    def __enter__(self) -> Noting:
        return self

    def __exit__(self, *failure: object) -> None:
        self._thread.shutdown(wait=True)

    def begin(self, note: Callable[[], None]) -> None:
        """Begin to note a part, once the one before is noted. Raises what noting that one did."""
        self.wait()
        self._under_way = self._thread.submit(note)

    def wait(self) -> None:
        """Until all are noted. Raises what noting the last one did."""
        if self._under_way is not None:
            self._under_way.result()


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """A set that is whole on the medium."""

    backup_set: BackupSet
    parts: tuple[PartRecord, ...]
    notes: Notes

    def members(self) -> Iterator[tuple[int, MemberRecord]]:
        """Every member with its part's number, in the order of the medium."""
        for line in self.notes.lines(self.parts):
            document = parse_line(line)
            yield document["part"], member_of(document)


def write_set(
    job: Job,
    *,
    medium: Medium,
    directory: Path,
    journal: Journal,
    progress: Progress,
    confirm: Callable[[], None],
) -> Written:
    """Write what of the set is not yet whole on the medium, then its catalogue and its end.

    `confirm` is called when the last byte was read off the leg, and raises if it is not that of the
    split any more. Raises EndOfMedium, MediumError, LegError; what was written before stays a
    readable, incomplete set.
    """
    notes = Notes(directory, journal)
    blank = None if notes.parts() else job.trusted.volume
    volume = open_for_append(medium, job.trusted.volume, label_blank=blank)
    done = whole_parts(volume, job.backup_set.set_id, notes)
    journal.record("writing", volume=volume.serial, from_part=len(done) + 1)
    writer = _SetWriter(job, volume, notes, progress, sum(part.stored for part in done))
    speed = writer.write(len(done), journal)
    confirm()
    maps = replace(job.backup_set.maps, renewed=job.backup_set.maps.renewed + writer.renewed)
    written = whole_set(replace(job.backup_set, speed=speed, maps=maps), notes)
    if written.backup_set.files != job.members:
        raise LegError(
            f"{written.backup_set.files} of {job.members} members are on the volume",
            hint="The set is not whole. Back up anew, and report this: it must not happen.",
        )
    if not _catalogue_is_whole(volume, job.backup_set.set_id):
        _write_catalogue(job, volume, written)
    volume.finish_set()
    journal.record("written", set=json_of(written.backup_set))
    return written


def whole_set(backup_set: BackupSet, notes: Notes) -> Written:
    """The set as it is on the medium, by what was noted of its parts."""
    parts = tuple(notes.parts())
    finished = replace(
        backup_set,
        complete=True,
        files=sum(part.members for part in parts),
        stored_bytes=sum(part.stored for part in parts),
    )
    return Written(backup_set=finished, parts=parts, notes=notes)


class _SetWriter:
    """Writes the parts of one set, one after the other. `renewed`: how many files lay otherwise on
    the leg than the plan has it, once they were read."""

    def __init__(
        self, job: Job, volume: VolumeWriter, notes: Notes, progress: Progress, done: int
    ) -> None:
        self._job = job
        self._volume = volume
        self._notes = notes
        self._progress = progress
        self._done = done
        self._noting = Noting()
        self.renewed = 0
        copied = sum(stored_size(redo) for redo in job.trusted.copied)
        self._total = sum(part.stored for part in job.plan.parts) + copied

    def write(self, done: int, journal: Journal) -> Speed:
        """Every part behind the first `done`."""
        job, began_s, before = self._job, time.monotonic(), self._done
        with (
            LegView(job.leg, job.trusted.trees) as view,
            LegSource(
                job.leg, job.trusted.trees, view, job.plan.table, titles=job.titles
            ) as source,
            WriteBehind(self._volume.write) as medium,
            self._noting,
        ):
            for part, stretches in source.parts(job.plan.parts[done:], medium.then):
                self._part(part.number, stretches, medium)
            source.stop()  # its memory is given back while the last part is noted
            self._noting.wait()
            self.renewed = source.counts.renewed
            journal.record("read", renewed=self.renewed)
            copies = copy_parts(job.trusted.copied, job.trusted.part_size)
            for number, files in enumerate(copies, len(job.plan.parts) + 1):
                if number > done:
                    self._part(number, map(copied_member, files), medium)
            self._noting.wait()
        took_s = time.monotonic() - began_s
        return speed_of(self._done - before, took_s, source.counts, medium, job.leg_rate)

    def _part(self, number: int, stretches: Iterable[Stretch], medium: WriteBehind) -> None:
        """One part, whole on the medium when it returns; else it is taken back. It is noted while
        the next one is written: on a busy disk a sync takes as long as reading many MiB."""
        self._volume.begin_file(
            TapeFileKind.PART, self._job.backup_set.set_id, number, self._job.trusted.block_size
        )
        try:
            with self._notes.manifest(number) as lines:
                record = self._fill(number, stretches, medium, lines)
                medium.drain()
                file = self._volume.end_file()
        except BaseException:
            medium.stop()
            self._volume.abandon_file()
            raise
        noted = replace(record, position=data_position(file))
        self._noting.begin(partial(self._notes.note, noted))

    def _fill(
        self, number: int, stretches: Iterable[Stretch], medium: WriteBehind, lines: IO[bytes]
    ) -> PartRecord:
        part = PartWriter(
            medium,
            lines,
            number=number,
            set_id=self._job.backup_set.set_id,
            block_size=self._job.trusted.block_size,
            then=medium.then,
        )
        for stretch in stretches:
            if isinstance(stretch, Member):
                part.add(stretch)
            else:
                part.add_plain(stretch)
            self._progress(self._done + part.stored, self._total)
        self._done += part.stored
        return part.close()


def _write_catalogue(job: Job, volume: VolumeWriter, written: Written) -> None:
    set_id, number = written.backup_set.set_id, len(written.parts) + 1
    volume.begin_file(TapeFileKind.CATALOGUE, set_id, number, job.trusted.block_size)
    try:
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


# --- the pieces


def whole_parts(volume: VolumeWriter, set_id: str, notes: Notes) -> list[PartRecord]:
    """The noted parts, each found whole where it was noted. One that became whole in the moment
    before a crash but was not noted is written once more behind itself.

    Raises WrongMedium when a noted part is not on the volume.
    """
    there = {data_position(file) for file in volume.files if file.set_id == set_id}
    noted = notes.parts()
    for part in noted:
        if part.position not in there:
            raise WrongMedium(
                f"part {part.number} of {set_id} is not on volume {volume.serial} any more",
                hint="Load the volume on which the backup began, or back up anew.",
            )
    return noted


def _catalogue_is_whole(volume: VolumeWriter, set_id: str) -> bool:
    return any(
        file.set_id == set_id and file.kind is TapeFileKind.CATALOGUE for file in volume.files
    )


def data_position(file: TapeFile) -> MediaPosition:
    """Where the first data record of a tape file lies."""
    return replace(file.position, object=file.data)


def look_at_volume(medium: Medium, label: str) -> None:
    """Load the volume to read and see that it is ours and the right one, or blank.

    Changes nothing. Raises NoSuchVolume, WrongMedium, MediumError, Busy.
    """
    medium.load(writable=False)
    if medium.read(memoryview(bytearray(1 << 20))) is END_OF_DATA:
        return  # blank: the first backup labels it
    found = VolumeReader(medium).serial
    if found != label:
        raise WrongMedium(
            f"volume {label} is wanted, {found} is loaded",
            hint=f'Load volume {label}, or write volume = "{found}" in the configuration.',
        )


def copied_member(redo: RedoFile) -> Member:
    """A file, or a bare directory, from beside the leg."""
    origin = Origin.DATABASE if redo.made_by_server else Origin.PRIMARY
    return file_member(redo.name, redo.copy, origin)


def stored_size(redo: RedoFile) -> int:
    """Bytes of a copied file; of a directory none are stored."""
    return redo.copy.stat().st_size if redo.copy.is_file() else 0


def copy_parts(copied: Sequence[RedoFile], part_size: int) -> list[list[RedoFile]]:
    """The copied files in parts of at most `part_size`, or of one file alone."""
    parts: list[list[RedoFile]] = []
    room = 0
    for redo in copied:
        size = stored_size(redo)
        if not parts or size > room:
            parts.append([])
            room = part_size
        parts[-1].append(redo)
        room -= size
    return parts


def copy_outside(outside: Sequence[Root], into: Path) -> tuple[RedoFile, ...]:
    """Copy files from the primary, and of directories only themselves; synced, with owner, mode and
    times."""
    copies = []
    into.mkdir(mode=0o700)
    for number, root in enumerate(outside):
        copy = into / f"{number:04d}"
        try:
            status = os.stat(root.path)
            if stat.S_ISDIR(status.st_mode):
                copy.mkdir()
                shutil.copystat(os.fsdecode(root.path), copy)
            else:
                shutil.copy2(os.fsdecode(root.path), copy)
        except OSError as error:
            kind = NoRoom if error.errno == errno.ENOSPC else NoSuchFile
            raise kind(
                f"{os.fsdecode(root.path)} cannot be copied to {into}: {error.strerror}",
                hint="Check that it is there and readable, and that there is room for the copy.",
            ) from error
        os.chown(copy, status.st_uid, status.st_gid)
        sync(copy)
        copies.append(RedoFile(name=root.name, copy=copy))
    sync(into)
    return tuple(copies)


def json_of(value: object) -> str:
    """A value of ours as JSON for the run's own files; `from_json` gives it back."""
    return msgspec.json.encode(value, enc_hook=str).decode()


def from_json(text: bytes | str, kind: type[T]) -> T:
    """Raises msgspec.ValidationError for what `json_of` cannot have given."""
    return msgspec.json.decode(text, type=kind, dec_hook=lambda wanted, value: wanted(value))


def write_durably(path: Path, text: bytes) -> None:
    """Write a file so that it is whole or not there, whatever happens. Raises NoRoom."""
    temporary = path.with_name(path.name + ".new")
    try:
        temporary.write_bytes(text)
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)
    except OSError as error:
        raise NoRoom(
            f"{path} cannot be written: {error.strerror}", hint=f"Make room in {path.parent}."
        ) from error


def sync(path: Path) -> None:
    """fsync a file or directory."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)

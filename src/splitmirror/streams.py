"""A stream of a set that is being written: a drive, and a stretch of the set's parts.

It asks for its volumes on the caller's thread (see stream.together); all else it does by itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import IO

from splitmirror.archive.manifest import PartRecord
from splitmirror.archive.part import PartWriter
from splitmirror.beside import CopyPart, copied_member
from splitmirror.errors import EndOfMedium, NoRoom, WrongMedium
from splitmirror.extents.views import LegView
from splitmirror.media.labels import TapeFileKind
from splitmirror.media.volume import VolumeWriter
from splitmirror.media.walking import TapeFile
from splitmirror.model import MediaPosition
from splitmirror.notes import Noting
from splitmirror.stream.behind import Behind, Then, WriteBehind
from splitmirror.stream.look import ReadCounts
from splitmirror.stream.member import Member
from splitmirror.stream.pipeline import LegSource, Stretch
from splitmirror.stream.plan import Part
from splitmirror.stream.reservoir import Reservoir, size_for
from splitmirror.stream.room import PART_ROOM
from splitmirror.stream.together import Ask
from splitmirror.stretches import AnyPart, Sharing, ToWrite, volume_of
from splitmirror.units import show_size


class Stream:
    """One drive, the volume in it, and what is written there. `run` is one thread's affair, all
    else the caller's."""

    def __init__(self, sharing: Sharing, others: list[Stream], number: int) -> None:
        """`others`: all streams of the set; it becomes one of them."""
        self.number = number
        self.busy_s = self.waited_s = 0.0  # as of Behind
        self.counts: list[ReadCounts] = []
        self.last = 0  # the number of the part that was written last
        self._sharing, self._all = sharing, others
        self._volume: VolumeWriter | None = None
        self._todo: list[AnyPart] = []
        self._done = 0  # bytes of data in whole parts
        self._behind: Behind | None = None
        self._stopped: BaseException | None = None
        others.append(self)

    # --- volumes

    @property
    def volume(self) -> VolumeWriter:
        assert self._volume is not None
        return self._volume

    @property
    def serial(self) -> str:
        """Of the volume in the drive; "" when there is none."""
        return "" if self._volume is None else self._volume.serial

    def begin(self, stretch: ToWrite) -> None:
        """Have the volume in the drive on which a stretch goes on: where it was cut off, else that
        of the stretch before, else one of the set on which nobody goes on, else a new one."""
        self._todo = list(stretch.parts)
        begun_on = "" if stretch.begun_on in self._not_for_us() else stretch.begun_on
        if begun_on or self._volume is None:
            self.go_on(begun_on or self._sharing.spare(self._not_for_us()), stretch.parts[0].number)

    def go_on(self, serial: str, from_part: int) -> None:
        """Have that volume in the drive; "": a new one. Raises WrongMedium when a part that was
        noted on it is not there any more."""
        if not serial:
            self.next_volume(from_part)
            return
        if serial == self.serial:
            return
        self.leave()
        volume = self._sharing.supply.again(self.number, serial)
        require_noted(volume, self._sharing.noted.values())
        self._have(volume, from_part)

    def next_volume(self, from_part: int, *, full: bool = False) -> None:
        """Leave the volume in the drive (because it is full), if there is one, for the next. Raises
        EndOfMedium, NoSuchVolume when there is none."""
        self.leave(full=full)
        passed = self._not_for_us()
        self._have(self._sharing.supply.next_volume(self.number, passed), from_part)

    def _not_for_us(self) -> set[str]:
        others = {stream.serial for stream in self._all if stream is not self}
        return (self._sharing.full | others) - {""}

    def _have(self, volume: VolumeWriter, from_part: int) -> None:
        self._volume = volume
        self._sharing.journal.record(
            "writing", stream=self.number, volume=volume.serial, from_part=from_part
        )

    def leave(self, *, full: bool = False) -> None:
        """Bring the volume to its end, and tell what is known of it. There is none: harmless."""
        volume, self._volume = self._volume, None
        if volume is None:
            return
        with suppress(EndOfMedium):  # what is whole is whole without the last filemark too
            volume.finish_set()
        use = self._sharing.learn(volume.serial, full=full)
        if full:
            self._sharing.journal.record(
                "volume full", volume=use.volume, stalls=use.stalls, stalled_s=use.stalled_s,
                notes=use.notes,
            )  # fmt: skip
        self._sharing.supply.noted(self._sharing.use_of(use.volume, self._sharing.notes.parts()))

    def require_room(self) -> None:
        """Raises NoRoom when a part of the stretch is larger than the whole volume."""
        largest = max(self._todo, key=lambda part: part.room)
        total = self.volume.total
        if total is not None and self._most(largest) > total:
            raise _too_large(largest, self.serial, f"which takes {show_size(total)}")

    def _most(self, part: AnyPart) -> int:
        """Bytes of the part's records, at most."""
        block_size = self._sharing.job.trusted.block_size
        return -(-(part.room + PART_ROOM) // block_size) * block_size

    # --- parts

    def stop(self, error: BaseException) -> None:
        """On any thread: come to an end soon, with this error."""
        self._stopped = error
        if (behind := self._behind) is not None:
            behind.break_off(error)

    def run(self, ask: Ask, view: LegView) -> None:
        """Write the stretch that was begun, and then those that no stream has begun."""
        with Noting() as noting:
            self._write(ask, view, noting)
            while stretch := self._sharing.next_stretch():
                ask(partial(self.begin, stretch))
                self._write(ask, view, noting)

    def _write(self, ask: Ask, view: LegView, noting: Noting) -> None:
        """The stretch, on as many volumes as it takes."""
        job = self._sharing.job
        with LegSource(
            job.leg, job.trusted.trees, view, job.plan.table, titles=job.titles
        ) as source:
            self.counts.append(source.counts)
            while self._todo:
                untouched, first = self.volume.end.tape_file == 0, self._todo[0]
                try:
                    self._write_here(source, noting)
                except EndOfMedium as full:
                    if untouched and self._todo[0] is first:
                        raise _too_large(first, self.serial, "though it was empty") from full
                    noting.wait()
                    self._go_to_next(ask, full)
        noting.wait()

    def _go_to_next(self, ask: Ask, full: EndOfMedium) -> None:
        try:
            ask(partial(self.next_volume, self._todo[0].number, full=True))
        except EndOfMedium as error:
            error.add_note(f"{full} {full.hint}")
            raise

    def _write_here(self, source: LegSource, noting: Noting) -> None:
        """As much of the stretch as the volume takes. Raises EndOfMedium when that is not all."""
        with self._feeding() as behind:
            for part, stretches in _read(source, tuple(self._todo), behind.then):
                record = self._part(part, stretches, behind)
                noting.begin(partial(self._sharing.notes.note, record))
                self._todo.pop(0)

    @contextmanager
    def _feeding(self) -> Iterator[Behind]:
        """What feeds the drive, as it wants it."""
        pace, block_size = self.volume.pace, self._sharing.job.trusted.block_size
        bounded = ""
        behind: Behind
        if pace is None:
            behind = WriteBehind(self.volume.write)
        else:
            size, bounded = size_for(pace, block_size, len(self._all))
            behind = Reservoir(self.volume.write, pace, block_size, size)
        try:
            with behind:
                self._behind = behind
                if self._stopped is not None:
                    raise self._stopped
                yield behind
        finally:
            self._behind = None
            self.busy_s += behind.busy_s
            self.waited_s += behind.waited_s
            slower = behind.slower() if isinstance(behind, Reservoir) else ""
            self._sharing.learn(
                self.serial, stalls=behind.stalls, stalled_s=behind.stalled_s,
                notes=(bounded, slower),
            )  # fmt: skip

    def _part(self, part: AnyPart, stretches: Iterable[Stretch], behind: Behind) -> PartRecord:
        """One part, whole on the medium when it returns; else it is given up. It is noted while
        the next one is written: on a busy disk a sync takes as long as reading many MiB."""
        job = self._sharing.job
        try:
            self.volume.begin_file(
                TapeFileKind.PART,
                job.backup_set.set_id,
                part.number,
                job.trusted.block_size,
                least=part.stored,
                most=self._most(part),
            )
            with self._sharing.notes.manifest(part.number) as lines:
                record = self._fill(part.number, stretches, behind, lines)
                behind.drain()
                file = self.volume.end_file()
        except BaseException:
            behind.stop()
            self.volume.abandon_file()
            raise
        self._done += record.stored
        self.last = part.number
        return replace(record, position=data_position(file))

    def _fill(
        self, number: int, stretches: Iterable[Stretch], behind: Behind, lines: IO[bytes]
    ) -> PartRecord:
        writer = PartWriter(
            behind,
            lines,
            number=number,
            set_id=self._sharing.job.backup_set.set_id,
            block_size=self._sharing.job.trusted.block_size,
            then=behind.then,
        )
        for stretch in stretches:
            if isinstance(stretch, Member):
                writer.add(stretch)
            else:
                writer.add_plain(stretch)
            self._sharing.tell(self.number, self._done + writer.stored)
        return writer.close()


def _read(
    source: LegSource, parts: Sequence[AnyPart], then: Then
) -> Iterator[tuple[AnyPart, Iterable[Stretch]]]:
    """The parts with their members: what lies on the leg, then what lies beside it."""
    if on_leg := [part for part in parts if isinstance(part, Part)]:
        yield from source.parts(on_leg, then)
        source.stop()  # its memory is given back while the last part is noted
    for part in parts:
        if isinstance(part, CopyPart):
            yield part, map(copied_member, part.files)


def _too_large(part: AnyPart, serial: str, why: str) -> NoRoom:
    return NoRoom(
        f"part {part.number} of the set, of up to {show_size(part.room)}, does not fit on volume "
        f"{serial}, {why}",
        hint="Choose a smaller part_size in [backup], or larger volumes, and back up again.",
        volume=serial,
    )


def require_noted(volume: VolumeWriter, noted: Iterable[PartRecord]) -> None:
    """Each part that was noted on the volume is there, whole, where it was noted. (One that became
    whole in the moment before a crash but was not noted is written once more behind itself.)

    Raises WrongMedium.
    """
    there = {(file.set_id, data_position(file)) for file in volume.files}
    for part in noted:
        if volume_of(part) == volume.serial and (part.set_id, part.position) not in there:
            raise WrongMedium(
                f"part {part.number} of {part.set_id} is not on volume {volume.serial} any more",
                hint="Load the volume on which the backup was cut off, or back up anew.",
            )


def data_position(file: TapeFile) -> MediaPosition:
    """Where the first data record of a tape file lies."""
    return replace(file.position, object=file.data)

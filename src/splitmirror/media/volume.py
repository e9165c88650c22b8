"""How a volume is labelled and appended to. What stands on it is told in `walking`.

A tape file that is not complete is written over by the next one; what was complete is never
touched. `open_for_append` proves from the labels where the volume ends, and writes nothing.

On a volume that can be written once only nothing is ever written over: an unfinished tape file is
closed with labels that say it was abandoned (`writeonce`), and there is no second filemark behind
the last one, nor behind VOL1, for the next tape file goes where it would stand.
"""

from __future__ import annotations

import dataclasses
import datetime
import enum
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Self

from splitmirror.errors import ConfigError, DriveLost, EndOfMedium, MediumError, WrongMedium
from splitmirror.media import END_OF_DATA, Block, Medium, Pace, Paced, WriteOnce
from splitmirror.media.labels import (
    LabelGroup,
    State,
    TapeFileKind,
    VolumeLabel,
    label_records,
)
from splitmirror.media.walking import (
    Beginning,
    SetOnVolume,
    TapeFile,
    VolumeEnd,
    VolumeReader,
    beginning,
    read_record,
)
from splitmirror.media.writeonce import close_unfinished
from splitmirror.model import MediaPosition
from splitmirror.units import show_size

__all__ = [
    "SetOnVolume",
    "TapeFile",
    "TapeFileKind",
    "VolumeEnd",
    "VolumeReader",
    "VolumeWriter",
    "is_write_once",
    "label_volume",
    "look_at_volume",
    "open_for_append",
    "require_lost",
    "require_serial",
]

_FRAMING = 16  # bytes that a record may take on the medium beside its own
_TRAILER = 2048  # bytes that all labels and filemarks behind the data may take


def label_volume(medium: Medium, serial: str, *, losing: str | None = None) -> None:
    """Make a volume ours: VOL1 and two filemarks (none on a write-once one), synced. Loads the
    medium.

    It must be blank, or begin with what `losing` names (`walking.Beginning.name`): all of that is
    lost. Whether it may be lost is asked elsewhere (`recycling`). Raises WrongMedium when something
    else is there, ConfigError when the serial cannot be one; nothing was written then.
    """
    label = require_serial(serial)
    medium.load(writable=True)
    require_lost(beginning(medium), serial, losing)
    medium.locate(0)
    if medium.tell() != 0:
        raise MediumError(
            f"the volume to be labelled {serial} stands at object {medium.tell()} after a rewind",
            hint="The drive lost its position or was reset. Nothing was written; check the drive.",
        )
    medium.write(label_records([label.pack()], medium.limits.fixed))
    medium.write_filemarks(0 if is_write_once(medium) else 2, sync=True)


def require_serial(serial: str) -> VolumeLabel:
    """The label of a volume of that serial. Raises ConfigError when it cannot be one."""
    try:
        return VolumeLabel(serial=serial)
    except ValueError:
        raise ConfigError(
            f"{serial!r} cannot be the serial of a volume",
            hint="Take six capital letters and digits, for example SM0001.",
        ) from None


def require_lost(there: Beginning, serial: str, losing: str | None) -> None:
    """Raises WrongMedium unless the volume that is to be labelled `serial` is blank, or begins with
    what `losing` names."""
    if not there.blank and there.name != losing:
        raise WrongMedium(
            f"the volume to be labelled {serial} is not blank: it is {there.name}",
            hint="Look what is on it with `splitmirror media dump`; if all of that may be lost, "
            f"`splitmirror media label {serial} --lose {there.name}`.",
            serial=there.serial,
        )


def look_at_volume(medium: Medium, serial: str) -> None:
    """Load the volume to read and see that it is ours and the right one, or blank.

    Changes nothing. Raises NoSuchVolume, WrongMedium, MediumError, Busy.
    """
    medium.load(writable=False)
    if read_record(medium) is END_OF_DATA:
        return  # blank: the first backup labels it
    found = VolumeReader(medium).serial
    if found != serial:
        raise WrongMedium(
            f"volume {serial} is wanted, {found} is loaded",
            hint=f'Load volume {serial}, or write volume = "{found}" in the configuration.',
        )


def is_write_once(medium: Medium) -> bool:
    """Of the volume that is loaded."""
    return isinstance(medium, WriteOnce) and medium.write_once


class _Stage(enum.Enum):
    """What a writer may do next."""

    BETWEEN = "begin a file or finish the set"
    IN_FILE = "write records, end the file or abandon it"
    BROKEN = "abandon the file"


class VolumeWriter:
    """Appends tape files to a volume of ours. Made by `open_for_append`; `with` unloads it.

    After an error in a file the only way on is `abandon_file`; what was complete before is safe.
    """

    def __init__(self, medium: Medium, serial: str, files: list[TapeFile], end: VolumeEnd) -> None:
        self._medium = medium
        self._serial = serial
        self._files = files
        self._end = end
        self._stage = _Stage.BETWEEN
        self._labels: LabelGroup | None = None
        self._blocks = 0
        self._most: int | None = None  # bytes of records that the file may have in all
        self.write_once = is_write_once(medium)
        self._whole = not self.write_once  # nothing unfinished stands where the volume ends

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._medium.unload()

    @property
    def serial(self) -> str:
        return self._serial

    @property
    def files(self) -> tuple[TapeFile, ...]:
        """The complete tape files on the volume, those written since included."""
        return tuple(self._files)

    @property
    def end(self) -> VolumeEnd:
        """Where the next tape file goes."""
        return self._end

    @property
    def left(self) -> int | None:
        """Bytes before the early warning; None: the medium does not know."""
        return self._medium.capacity.left

    @property
    def total(self) -> int | None:
        """Bytes that the volume takes when it is empty; None: the medium does not know."""
        return self._medium.capacity.total

    @property
    def pace(self) -> Pace | None:
        """How the drive wants to be fed; None: it does not matter."""
        return self._medium.pace if isinstance(self._medium, Paced) else None

    def resume(self, set_id: str) -> TapeFile | None:
        """The last complete tape file of a set, after which a run that was cut off goes on (its
        catalogue: the set is complete). None: there is none on this volume."""
        return next((file for file in reversed(self._files) if file.set_id == set_id), None)

    def begin_file(
        self,
        kind: TapeFileKind,
        set_id: str,
        part_number: int,
        block_size: int,
        *,
        created: datetime.date | None = None,
        least: int = 0,
        most: int | None = None,
    ) -> MediaPosition:
        """Write the labels before a tape file, over what a crash left; where it begins.

        `least`: bytes of records that it has at least; `most`: and at most, as far as is known.
        With them it is not begun where it cannot fit, and given up at the early warning unless it
        surely fits. Raises EndOfMedium.
        """
        self._expect(_Stage.BETWEEN)
        self._go_to_end(least)
        self._most = most
        fixed = self._medium.limits.fixed
        self._labels = LabelGroup(
            kind=kind,
            state=State.OPEN,
            set_id=set_id,
            part_number=part_number,
            block_size=block_size,
            sequence=self._end.tape_file + 1,
            created=created or datetime.datetime.now(datetime.UTC).date(),
            record_format="F" if fixed else "U",
        )
        self._blocks = 0
        with self._writing():
            self._stand_at(self._end.object)
            self._medium.write(label_records(self._labels.pack(), fixed))
            self._medium.write_filemarks(1, sync=False)
            self._require_room(least)
        self._stage = _Stage.IN_FILE
        return self._position

    def write(self, blocks: Sequence[Block]) -> bool:
        """Append records, each of the block size. True: early warning, bring the part to its end or
        abandon it. Raises EndOfMedium, also at the early warning of a file that may have more than
        surely fits (see `begin_file`); then the file can only be abandoned."""
        self._expect(_Stage.IN_FILE)
        wanted = self._open_labels.block_size
        for block in blocks:
            if memoryview(block).nbytes != wanted:
                raise ValueError(f"{memoryview(block).nbytes} bytes, blocks have {wanted}")
        with self._writing():
            early = self._medium.write(blocks)
            self._blocks += len(blocks)
            if early and self._most is not None:
                self._require_sure(self._most - self._blocks * wanted)
        return early

    def end_file(self) -> TapeFile:
        """Filemark, labels, filemark. The tape file is on the medium for good when this returns."""
        self._expect(_Stage.IN_FILE)
        labels = dataclasses.replace(self._open_labels, state=State.COMPLETE, blocks=self._blocks)
        file = TapeFile(
            position=self._position,
            kind=labels.kind,
            set_id=labels.set_id,
            part_number=labels.part_number,
            block_size=labels.block_size,
            blocks=labels.blocks,
            created=labels.created,
        )
        with self._writing():
            self._medium.write_filemarks(1, sync=False)
            self._medium.write(label_records(labels.pack(), self._medium.limits.fixed))
            self._medium.write_filemarks(1, sync=True)
            self._confirm(file.behind)
        self._files.append(file)
        self._end = VolumeEnd(
            object=file.behind, tape_file=file.position.tape_file + 1, closed=False
        )
        self._stage = _Stage.BETWEEN
        return file

    def abandon_file(self) -> None:
        """Give up the file that was begun: the next one, or the end of the set, is written over it;
        on a write-once volume it is closed as abandoned, now or, where the medium failed, before
        the next one. No file begun: harmless."""
        if self._stage is not _Stage.BETWEEN:
            self._end = dataclasses.replace(self._end, closed=False, unfinished=self._labels)
            self._stage = _Stage.BETWEEN
            if self.write_once:
                self._whole = False
                with suppress(MediumError):  # the error that made it be given up is the one to tell
                    self._close_unfinished()

    def finish_set(self) -> None:
        """Close the volume with its second filemark, synced; an abandoned file is gone then. The
        next append goes over that filemark. A second call is harmless, and so is the first on a
        write-once volume: it ends where its data end."""
        self._expect(_Stage.BETWEEN)
        if self._end.closed or self.write_once:
            return
        with self._writing():
            self._stand_at(self._end.object)
            self._medium.write_filemarks(1 if self._end.tape_file else 2, sync=True)
        self._stage = _Stage.BETWEEN
        self._end = dataclasses.replace(self._end, closed=True, unfinished=None)

    # --- inside

    @property
    def _position(self) -> MediaPosition:
        return MediaPosition(
            volume=self._serial, tape_file=self._end.tape_file, object=self._end.object
        )

    @property
    def _open_labels(self) -> LabelGroup:
        assert self._labels is not None
        return self._labels

    def _expect(self, stage: _Stage) -> None:
        if self._stage is not stage:
            raise RuntimeError(f"volume {self._serial}: only this can follow: {self._stage.value}")

    def _go_to_end(self, least: int) -> None:
        """Nothing unfinished may be left where nothing is written over, and nothing begun there
        that cannot be brought to its end."""
        if not self.write_once:
            return
        if self._end.closed:
            raise EndOfMedium(
                f"volume {self._serial} was closed with a second filemark and can be written once "
                "only",
                hint="Take another volume.",
                volume=self._serial,
            )
        with self._writing():
            self._close_unfinished()
            self._require_room(least)
        self._stage = _Stage.BETWEEN

    def _close_unfinished(self) -> None:
        if not self._whole:
            self._end = close_unfinished(self._medium, self._end)
            self._whole = True

    def _require_room(self, least: int) -> None:
        """Raises EndOfMedium when the medium knows that so much does not fit."""
        rest = self._medium.capacity.rest
        if rest is not None and least > rest:
            raise EndOfMedium(
                f"{show_size(rest)} are left, and the next part has {show_size(least)} at least",
                hint="Take another volume.",
            )

    def _require_sure(self, more: int) -> None:
        """Raises EndOfMedium unless so much more surely fits, and what ends the volume. (Less than
        nothing: it has become larger than it was said to be, and how much larger is not known.)"""
        rest, block_size = self._medium.capacity.rest, self._open_labels.block_size
        records = -(-more // block_size)
        if rest is None or more < 0 or records * (block_size + _FRAMING) + _TRAILER > rest:
            raise EndOfMedium(
                "the early warning came, and the part may not fit",
                hint="Take another volume.",
            )

    def _stand_at(self, position: int) -> None:
        self._medium.locate(position)
        self._confirm(position)

    def _confirm(self, position: int) -> None:
        if self._medium.tell() != position:
            raise DriveLost(
                f"volume {self._serial} stands at object {self._medium.tell()} instead of "
                f"{position}",
                hint="The drive lost its position or was reset. Nothing more is written; check "
                "the drive, then run `splitmirror recover`.",
                volume=self._serial,
            )

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Whatever fails in here, the file that is being written is not good."""
        try:
            yield
        except EndOfMedium as error:
            self._stage = _Stage.BROKEN
            raise EndOfMedium(
                f"volume {self._serial} is full: {error}",
                hint=f"{error.hint} What is complete on the volume is safe; the part that was "
                "being written is not on it.",
                volume=self._serial,
                tape_file=self._end.tape_file,
            ) from error
        except BaseException:
            self._stage = _Stage.BROKEN
            raise


def open_for_append(
    medium: Medium, serial: str | None = None, *, label_blank: str | None = None
) -> VolumeWriter:
    """Load a volume and go to its end, proven by walking its labels.

    A blank medium becomes volume `label_blank` when that is given. Raises WrongMedium when the
    volume is not ours, blank, or (when `serial` is given) another one; MediumDamaged when its end
    cannot be proven; Busy. Nothing is written before the first `begin_file`.
    """
    medium.load(writable=True)
    try:
        if label_blank is not None and read_record(medium) is END_OF_DATA:
            label_volume(medium, label_blank)
        reader = VolumeReader(medium)
        if serial is not None and reader.serial != serial:
            raise WrongMedium(
                f"volume {serial} is wanted, {reader.serial} is loaded",
                hint=f"Load volume {serial}, or name {reader.serial} in the configuration.",
                serial=reader.serial,
            )
        files = list(reader.files())
        return VolumeWriter(medium, reader.serial, files, reader.end())
    except BaseException:
        medium.unload()
        raise

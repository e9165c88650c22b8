"""What stands on a volume, told from its labels.

    VOL1 | HDR1 HDR2 HDR3 * records * EOF1 EOF2 EOF3 * HDR1 ... EOF3 * *

`*` is a filemark. A tape file is what lies from an HDR1 through the filemark behind its EOF3; three
filemarks each, so that the data of tape file n (from 0) are found by `mt fsf 3n+1`. The volume ends
with a second filemark. A labelled volume without a tape file is `VOL1 * *`: a filemark stands where
the first HDR1 will. A crash may leave a tape file unfinished at the end of data. Anything else in
its place is damage.

The labels are in `labels`. Sequence numbers and positions are checked against where they were
found.
"""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NoReturn

from splitmirror.errors import MediumDamaged, MediumError, WrongMedium
from splitmirror.media import END_OF_DATA, FILEMARK, Mark, Medium
from splitmirror.media.labels import (
    LABEL_SIZE,
    FileLabel,
    FormatLabel,
    LabelGroup,
    SetLabel,
    State,
    TapeFileKind,
    VolumeLabel,
)
from splitmirror.model import MediaPosition

_FIRST_FILE: Final = 1  # the object behind VOL1
_LABELS: Final = 3  # before the data, and again behind them
UNLABELLED: Final = "unlabelled"  # the name of a volume that begins with something else
_LABEL_NAMES: Final = frozenset(
    kind + number for kind in ("VOL", "HDR", "EOF", "EOV", "UHL", "UTL") for number in "123456789"
)
_LARGEST_RECORD: Final = 1 << 20  # what a set's block size may be


@dataclass(frozen=True, slots=True, kw_only=True)
class TapeFile:
    """A complete tape file. `position` is that of its HDR1, `data` the object number of its first
    record; `blocks` records of `block_size` bytes (the last one too) follow."""

    position: MediaPosition
    kind: TapeFileKind
    set_id: str
    part_number: int
    block_size: int
    blocks: int
    created: datetime.date

    @property
    def data(self) -> int:
        return self.position.object + _LABELS + 1

    @property
    def behind(self) -> int:
        """The object behind its last filemark, where the next tape file begins."""
        return self.data + self.blocks + 1 + _LABELS + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class SetOnVolume:
    """The tape files of a set on this volume, in order; `complete`: its catalogue is there."""

    set_id: str
    files: tuple[TapeFile, ...]

    @property
    def complete(self) -> bool:
        return any(file.kind is TapeFileKind.CATALOGUE for file in self.files)


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeEnd:
    """Where the next tape file goes, and what is there now.

    `closed`: the second filemark. `unfinished`: the labels of a tape file that a crash cut off,
    as far as they can be read.
    """

    object: int
    tape_file: int
    closed: bool
    unfinished: LabelGroup | None = None


class _CutOff(Exception):
    """The end of data was met where a tape file goes on."""


class VolumeReader:
    """Reads a loaded medium by its labels. Moves it: do not rely on where it stands."""

    def __init__(self, medium: Medium) -> None:
        """Reads VOL1. Raises WrongMedium when the volume is blank or not ours."""
        self._medium = medium
        medium.locate(0)
        found = read_record(medium)
        if isinstance(found, Mark):
            _not_ours(found)
        self._serial = VolumeLabel.parse(found).serial
        self._end: VolumeEnd | None = None

    @property
    def serial(self) -> str:
        return self._serial

    def files(self) -> Iterator[TapeFile]:
        """The complete tape files in order, found by spacing over filemarks; no data are read.

        Raises MediumDamaged where something stands that no crash leaves; what came before is good.
        """
        at, number = _FIRST_FILE, 0
        while isinstance(found := self._tape_file(at, number), LabelGroup):
            file = self._described(at, number, found)
            if found.state is State.COMPLETE:
                yield file
            at, number = file.behind, number + 1
        self._end = found

    def end(self) -> VolumeEnd:
        """Where the next tape file goes. Walks the volume unless `files` has been to its end."""
        if self._end is None:
            for _ in self.files():
                pass
        assert self._end is not None
        return self._end

    def sets(self) -> list[SetOnVolume]:
        """What sets are on the volume, in the order in which they begin, from labels alone."""
        found: dict[str, list[TapeFile]] = {}
        for file in self.files():
            found.setdefault(file.set_id, []).append(file)
        return [SetOnVolume(set_id=key, files=tuple(files)) for key, files in found.items()]

    def open(self, file: TapeFile, record: int = 0) -> None:
        """Stand before a record of a tape file, by position. Raises WrongMedium when the tape file
        is of another volume, MediumError when the volume is shorter."""
        if file.position.volume != self._serial:
            raise WrongMedium(
                f"volume {file.position.volume} is needed, {self._serial} is loaded",
                hint=f"Load volume {file.position.volume}.",
            )
        self._medium.locate(file.data + record)

    def records(self, file: TapeFile, record: int = 0) -> Iterator[memoryview]:
        """The records of a tape file from number `record` on; each is valid until the next. The
        medium must not be moved meanwhile.

        Raises MediumDamaged when there are fewer, more or shorter ones than its labels say.
        """
        self.open(file, record)
        buffer = memoryview(bytearray(file.block_size))
        for number in range(record, file.blocks):
            if self._medium.read(buffer) != file.block_size:
                raise _damage(f"record {number} of {file.blocks} is not whole", file.data + number)
            yield buffer
        if self._medium.read(buffer) is not FILEMARK:
            raise _damage("a filemark is missing behind the data", file.data + file.blocks)

    # --- walking

    def _tape_file(self, at: int, number: int) -> LabelGroup | VolumeEnd:
        """What the labels behind the tape file at object `at` say, proven; or the volume's end."""
        self._medium.locate(at)
        first = read_record(self._medium)
        if isinstance(first, Mark):
            return self._ended(at, number, first)
        before = None
        try:
            before = LabelGroup.parse(self._labels(at, first), number + 1)
            self._filemark(at + _LABELS)
            data = at + _LABELS + 1
            blocks = self._space(data)
            after = LabelGroup.parse(self._labels(data + blocks + 1), number + 1)
            self._filemark(data + blocks + 1 + _LABELS)
        except _CutOff:
            return VolumeEnd(object=at, tape_file=number, closed=False, unfinished=before)
        closed = dataclasses.replace(before, state=after.state, blocks=blocks)
        if before.state is not State.OPEN or after.state is State.OPEN or after != closed:
            raise _damage("the labels before and behind the data do not agree", data + blocks + 1)
        return after

    def _described(self, at: int, number: int, labels: LabelGroup) -> TapeFile:
        return TapeFile(
            position=MediaPosition(volume=self._serial, tape_file=number, object=at),
            kind=labels.kind,
            set_id=labels.set_id,
            part_number=labels.part_number,
            block_size=labels.block_size,
            blocks=labels.blocks,
            created=labels.created,
        )

    def _ended(self, at: int, number: int, mark: Mark) -> VolumeEnd:
        """The volume ends here when nothing is behind its last filemark: its second, or its second
        behind VOL1."""
        allowed, marks = 2 if number == 0 else 1, 0
        while mark is FILEMARK and marks <= allowed:
            marks += 1
            mark = self._mark(at + marks)
        if marks > allowed:
            raise _damage("a filemark follows the end of the volume", at + 1)
        return VolumeEnd(object=at, tape_file=number, closed=marks == allowed)

    def _mark(self, at: int) -> Mark:
        found = read_record(self._medium)
        if not isinstance(found, Mark):
            raise _damage("a record follows the end of the volume", at)
        return found

    def _labels(self, at: int, *read: bytes) -> list[bytes]:
        """The labels of a group, the first of which may have been read. Each is looked at before
        the next is missed: what a crash cut off is labels too."""
        found: list[bytes] = []
        for number, parse in enumerate((FileLabel.parse, FormatLabel.parse, SetLabel.parse)):
            label = read[number] if number < len(read) else read_record(self._medium)
            if label is END_OF_DATA:
                raise _CutOff
            if isinstance(label, Mark):
                # A tape driver that a crash closes puts a filemark behind records, and only there.
                if found and read_record(self._medium) is END_OF_DATA:
                    raise _CutOff
                raise _damage("a filemark stands where a label should", at + number)
            parse(label)
            found.append(label)
        return found

    def _filemark(self, at: int) -> None:
        found = read_record(self._medium)
        if found is END_OF_DATA:
            raise _CutOff
        if found is not FILEMARK:
            raise _damage("a record stands where a filemark should", at)

    def _space(self, data: int) -> int:
        """Go behind the filemark that ends the data; how many records there were."""
        try:
            self._medium.space_filemarks(1)
        except MediumError:
            # Spacing stops at the end of data; only a read tells that from a fault.
            if read_record(self._medium) is END_OF_DATA:
                raise _CutOff from None
            raise
        return self._medium.tell() - 1 - data


# --- reading labels


@dataclass(frozen=True, slots=True, kw_only=True)
class Beginning:
    """What a volume begins with. `serial`: that in its label; "" without one. `ours`: the label is
    ours. `name`: what a person calls the volume by."""

    blank: bool = False
    serial: str = ""
    ours: bool = False

    @property
    def name(self) -> str:
        return self.serial or UNLABELLED


def beginning(medium: Medium) -> Beginning:
    """Look what a loaded volume begins with. Raises MediumError when it cannot be read."""
    medium.locate(0)
    found = read_record(medium)
    if isinstance(found, Mark):
        return Beginning(blank=found is END_OF_DATA)
    text = label_text(found)
    if not text.startswith("VOL1"):
        return Beginning()
    try:
        return Beginning(serial=VolumeLabel.parse(found).serial, ours=True)
    except (WrongMedium, MediumDamaged):
        return Beginning(serial=text[4:10].rstrip())


def label_text(record: bytes) -> str:
    """A record as a label's text, also in EBCDIC (IBM's code page 37); "" when it is none."""
    label = record.rstrip(b"\0")
    if len(label) != LABEL_SIZE:
        return ""
    text = label.decode("ascii" if label.isascii() else "cp037")
    return text if text[:4] in _LABEL_NAMES and text.isprintable() else ""


def read_record(medium: Medium) -> bytes | Mark:
    """The next record, whatever it is, or the mark."""
    buffer = memoryview(bytearray(min(medium.limits.largest, _LARGEST_RECORD)))
    length = medium.read(buffer)
    return length if isinstance(length, Mark) else bytes(buffer[:length])


def _not_ours(found: Mark) -> NoReturn:
    if found is END_OF_DATA:
        raise WrongMedium(
            "the volume is blank", hint="Label it with `splitmirror media label`, or take another."
        )
    raise WrongMedium(
        "the volume does not begin with a label",
        hint="It is not one of ours and is left as it is. Name another volume.",
    )


def _damage(what: str, position: int) -> MediumDamaged:
    return MediumDamaged(
        f"the volume is damaged at object {position}: {what}",
        hint="It is not appended to. Read what is before that, and go on with another volume.",
        object=position,
    )

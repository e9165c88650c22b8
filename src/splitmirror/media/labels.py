"""Labels of 80 bytes, after ANSI X3.27 and ISO 1001 (ECMA-13), that stand around each tape file.
On a drive that knows blocks of one size only each is padded to it with NULs.

Columns count from 1, as in the standard. Text is ASCII, left-justified and padded with blanks;
numbers are digits with leading zeros. A date is `cyyddd`: c is a blank for 19yy and 0 for 20yy,
ddd the day of the year.

VOL1, once, at the beginning of the volume (`VolumeLabel`)

    1-4    VOL1
    5-10   volume identifier: the serial, six capital letters and digits
    11     accessibility: blank, no restriction
    12-24  blank
    25-37  implementation identifier: SPLITMIRROR
    38-51  owner identifier: SPLITMIRROR
    52-79  blank
    80     label standard version: 4

HDR1 before the data, EOF1 behind them (`FileLabel`)

    1-4    HDR1 or EOF1
    5-21   file identifier: PART-000001 and so on, or CATALOGUE
    22-27  file set identifier: the last six characters of the set's id, in capitals
    28-31  file section number: 0001, for a part is never divided between volumes
    32-35  file sequence number: place of the tape file on the volume, from 1; modulo 10000
    36-39  generation number: 0001
    40-41  generation version number: 00
    42-47  creation date
    48-53  expiration date: 099365, never, so that other programs leave it alone
    54     accessibility: blank
    55-60  block count: 000000 in HDR1; in EOF1 the data records of the file, modulo 1000000
    61-73  implementation identifier: SPLITMIRROR
    74-80  blank

HDR2, EOF2 (`FormatLabel`)

    1-4    HDR2 or EOF2
    5      record format: U (undefined, one record a block), or F on drives with fixed blocks
    6-10   block length: 00000 when it is above 99999 (see 71-80)
    11-15  record length: the same as 6-10
    16-50  blank
    51-52  buffer offset length: 00
    53-70  blank
    71-80  block length in full, ten digits (where IBM's large block interface has it)

HDR3, EOF3: ours; the standard leaves their contents to the implementation (`SetLabel`)

    1-4    HDR3 or EOF3
    5-6    version of the format: 01
    7      kind of the tape file: P part, C catalogue of the set
    8      state: blank in HDR3; in EOF3 C complete, A abandoned (only on write-once media)
    9-40   id of the set, at most 32 characters
    41-46  number of the part, from 1; the catalogue goes on counting
    47-53  block size in bytes
    54-65  block count: zeros in HDR3; in EOF3 the data records of the file, in full
    66-80  blank
"""

from __future__ import annotations

import datetime
import enum
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from splitmirror.errors import MediumDamaged, WrongMedium

LABEL_SIZE: Final = 80
FORMAT_VERSION: Final = 1
IMPLEMENTATION: Final = "SPLITMIRROR"
_NEVER = "099365"
_SEQUENCES = 10_000  # four digits
_BLOCK_COUNTS = 1_000_000  # six digits
_LARGEST_IN_FIVE = 99_999


class TapeFileKind(enum.StrEnum):
    """What a tape file is; the value stands in HDR3."""

    PART = "P"
    CATALOGUE = "C"


class State(enum.StrEnum):
    """What becomes of a tape file; the value stands in EOF3 (OPEN: in HDR3)."""

    OPEN = " "
    COMPLETE = "C"
    ABANDONED = "A"


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeLabel:
    """VOL1."""

    serial: str

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Z0-9]{6}", self.serial):
            raise ValueError(f"not six capital letters and digits: {self.serial!r}")

    def pack(self) -> bytes:
        return _join(
            ("VOL1", 4),
            (self.serial, 6),
            ("", 1),
            ("", 13),
            (IMPLEMENTATION, 13),
            (IMPLEMENTATION, 14),
            ("", 28),
            ("4", 1),
        )

    @classmethod
    def parse(cls, label: bytes) -> VolumeLabel:
        """Raises WrongMedium when it is no VOL1, or another program's."""
        text = _text(label)
        if not text.startswith("VOL1"):
            raise WrongMedium(
                "the volume does not begin with a label",
                hint="It is not one of ours and is left as it is. Name another volume.",
            )
        if text[24:37].rstrip() != IMPLEMENTATION:
            raise WrongMedium(
                f"the volume {text[4:10].rstrip()} was labelled by another program "
                f"({text[24:37].strip() or 'without a name'})",
                hint="It is left as it is. Name another volume.",
                serial=text[4:10],
            )
        with _reading(label, "VOL1") as text:
            return cls(serial=text[4:10])


@dataclass(frozen=True, slots=True, kw_only=True)
class FileLabel:
    """HDR1, or EOF1 when `end`. `sequence` and `blocks` stand on the medium modulo 10000 and
    1000000."""

    end: bool
    name: str
    set_identifier: str
    sequence: int
    created: datetime.date
    blocks: int = 0

    def __post_init__(self) -> None:
        _check_text(self.name, 17)
        _check_text(self.set_identifier, 6)
        if self.sequence < 0 or self.blocks < 0 or (self.blocks and not self.end):
            raise ValueError(f"sequence {self.sequence}, blocks {self.blocks}")

    def pack(self) -> bytes:
        return _join(
            (_name("1", self.end), 4),
            (self.name, 17),
            (self.set_identifier, 6),
            ("0001", 4),
            (f"{self.sequence % _SEQUENCES:04}", 4),
            ("0001", 4),
            ("00", 2),
            (_pack_date(self.created), 6),
            (_NEVER, 6),
            ("", 1),
            (f"{self.blocks % _BLOCK_COUNTS:06}", 6),
            (IMPLEMENTATION, 13),
            ("", 7),
        )

    @classmethod
    def parse(cls, label: bytes) -> FileLabel:
        """Raises MediumDamaged when it is none."""
        with _reading(label, "HDR1 or EOF1") as text:
            return cls(
                end=_is_end(text, "1"),
                name=text[4:21].rstrip(),
                set_identifier=text[21:27].rstrip(),
                sequence=_number(text[31:35]),
                created=_parse_date(text[41:47]),
                blocks=_number(text[54:60]),
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class FormatLabel:
    """HDR2, or EOF2 when `end`."""

    end: bool
    block_size: int
    record_format: str = "U"

    def __post_init__(self) -> None:
        if self.record_format not in ("U", "F") or not 1 <= self.block_size < 1 << 24:
            raise ValueError(f"format {self.record_format!r}, block size {self.block_size}")

    def pack(self) -> bytes:
        short = f"{self.block_size if self.block_size <= _LARGEST_IN_FIVE else 0:05}"
        return _join(
            (_name("2", self.end), 4),
            (self.record_format, 1),
            (short, 5),
            (short, 5),
            ("", 35),
            ("00", 2),
            ("", 18),
            (f"{self.block_size:010}", 10),
        )

    @classmethod
    def parse(cls, label: bytes) -> FormatLabel:
        """Raises MediumDamaged when it is none."""
        with _reading(label, "HDR2 or EOF2") as text:
            return cls(
                end=_is_end(text, "2"), record_format=text[4:5], block_size=_number(text[70:80])
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class SetLabel:
    """HDR3, or EOF3 when the state is not OPEN: which set, which part of it."""

    kind: TapeFileKind
    state: State
    set_id: str
    part_number: int
    block_size: int
    blocks: int = 0
    version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[0-9A-Za-z._-]{1,32}", self.set_id):
            raise ValueError(f"not 1 to 32 letters, digits, dots, dashes: {self.set_id!r}")
        if not 1 <= self.part_number < 1_000_000 or not 1 <= self.block_size < 10_000_000:
            raise ValueError(f"part {self.part_number}, block size {self.block_size}")
        if self.blocks < 0 or (self.blocks and self.state is State.OPEN):
            raise ValueError(f"{self.blocks} blocks in a file that is {self.state.name}")

    @property
    def end(self) -> bool:
        return self.state is not State.OPEN

    def pack(self) -> bytes:
        return _join(
            (_name("3", self.end), 4),
            (f"{self.version:02}", 2),
            (self.kind.value, 1),
            (self.state.value, 1),
            (self.set_id, 32),
            (f"{self.part_number:06}", 6),
            (f"{self.block_size:07}", 7),
            (f"{self.blocks:012}", 12),
            ("", 15),
        )

    @classmethod
    def parse(cls, label: bytes) -> SetLabel:
        """Raises MediumDamaged when it is none, WrongMedium when a later version wrote it."""
        text = _text(label)
        if text[:4] in ("HDR3", "EOF3") and text[4:6].isdigit() and int(text[4:6]) > FORMAT_VERSION:
            raise WrongMedium(
                f"the volume has format version {int(text[4:6])}, this program knows "
                f"{FORMAT_VERSION}",
                hint="Use the version of splitmirror that wrote it, or a later one.",
            )
        with _reading(label, "HDR3 or EOF3") as text:
            found = cls(
                version=_number(text[4:6]),
                kind=TapeFileKind(text[6:7]),
                state=State(text[7:8]),
                set_id=text[8:40].rstrip(),
                part_number=_number(text[40:46]),
                block_size=_number(text[46:53]),
                blocks=_number(text[53:65]),
            )
            if _is_end(text, "3") != found.end:
                raise ValueError("its name and its state do not agree")
            return found


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelGroup:
    """The three labels before a tape file's data (state OPEN), or behind them: one description.

    `sequence` is the place of the tape file on the volume, from 1.
    """

    kind: TapeFileKind
    state: State
    set_id: str
    part_number: int
    block_size: int
    sequence: int
    created: datetime.date
    blocks: int = 0
    record_format: str = "U"

    def pack(self) -> list[bytes]:
        end = self.state is not State.OPEN
        catalogue = self.kind is TapeFileKind.CATALOGUE
        return [
            FileLabel(
                end=end,
                name="CATALOGUE" if catalogue else f"PART-{self.part_number:06}",
                set_identifier=set_identifier(self.set_id),
                sequence=self.sequence,
                created=self.created,
                blocks=self.blocks,
            ).pack(),
            FormatLabel(
                end=end, block_size=self.block_size, record_format=self.record_format
            ).pack(),
            SetLabel(
                kind=self.kind,
                state=self.state,
                set_id=self.set_id,
                part_number=self.part_number,
                block_size=self.block_size,
                blocks=self.blocks,
            ).pack(),
        ]

    @classmethod
    def parse(cls, labels: list[bytes], sequence: int) -> LabelGroup:
        """`sequence`: the place where the labels were found. Raises MediumDamaged when they do not
        agree with one another or with it."""
        file, layout, ours = (
            FileLabel.parse(labels[0]),
            FormatLabel.parse(labels[1]),
            SetLabel.parse(labels[2]),
        )
        group = cls(
            kind=ours.kind,
            state=ours.state,
            set_id=ours.set_id,
            part_number=ours.part_number,
            block_size=ours.block_size,
            sequence=sequence,
            created=file.created,
            blocks=ours.blocks,
            record_format=layout.record_format,
        )
        wanted = [label.rstrip(b"\0") for label in labels]
        if file.end != ours.end or layout.end != ours.end or group.pack() != wanted:
            raise _damaged(labels[0], "labels that agree with one another")
        return group


def label_records(labels: Sequence[bytes], fixed: int | None) -> list[bytes]:
    """Labels as records; a drive that knows blocks of one size only (`fixed`) gets them padded."""
    return [label.ljust(fixed or LABEL_SIZE, b"\0") for label in labels]


def set_identifier(set_id: str) -> str:
    """The six characters that stand for a set in HDR1."""
    return re.sub(r"[^A-Z0-9]", "", set_id.upper())[-6:]


# --- fields


def _join(*fields: tuple[str, int]) -> bytes:
    label = "".join(text.ljust(width) for text, width in fields).encode("ascii")
    if len(label) != LABEL_SIZE:
        raise ValueError(f"a field is too long: {label!r}")
    return label


def _name(number: str, end: bool) -> str:
    return ("EOF" if end else "HDR") + number


def _is_end(text: str, number: str) -> bool:
    if text[:4] not in (_name(number, False), _name(number, True)):
        raise ValueError(f"it begins with {text[:4]!r}")
    return text[:3] == "EOF"


def _text(label: bytes) -> str:
    """The label as text; "" when it is none. A drive with fixed blocks pads with NULs."""
    label = label.rstrip(b"\0")
    if len(label) != LABEL_SIZE or not label.isascii():
        return ""
    return label.decode("ascii")


@contextmanager
def _reading(label: bytes, wanted: str) -> Iterator[str]:
    """The label as text; what a field does not allow becomes MediumDamaged."""
    try:
        yield _text(label)
    except (ValueError, KeyError) as error:
        raise _damaged(label, wanted) from error


def _number(digits: str) -> int:
    if not digits.isascii() or not digits.isdigit():
        raise ValueError(f"not digits: {digits!r}")
    return int(digits)


def _check_text(text: str, width: int) -> None:
    if not re.fullmatch(r"[A-Z0-9._-]+", text) or len(text) > width:
        raise ValueError(f"not 1 to {width} capital letters, digits, dots, dashes: {text!r}")


def _pack_date(date: datetime.date) -> str:
    if not 1900 <= date.year <= 2099:
        raise ValueError(f"the year {date.year} does not fit a label")
    return (" " if date.year < 2000 else "0") + date.strftime("%y%j")


def _parse_date(text: str) -> datetime.date:
    century = {" ": 1900, "0": 2000}[text[:1]]
    day = datetime.date(century + _number(text[1:3]), 1, 1)
    found = day + datetime.timedelta(days=_number(text[3:6]) - 1)
    if found.year != day.year:
        raise ValueError(f"not a day of the year: {text!r}")
    return found


def _damaged(label: bytes, wanted: str) -> MediumDamaged:
    return MediumDamaged(
        f"{wanted} expected, but {bytes(label[:LABEL_SIZE])!r} was read",
        hint="The volume is damaged, or was written by something else; nothing was changed. "
        "Read what else is on it.",
    )

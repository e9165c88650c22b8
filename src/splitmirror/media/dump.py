"""Everything on a volume in words: each label, each run of records, each filemark, with its place.

It takes any volume, also a damaged, a blank or another program's one, and passes over the data by
spacing, so that it takes as long as locating and not as long as reading.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass

from splitmirror.errors import MediumDamaged, MediumError, WrongMedium
from splitmirror.media import END_OF_DATA, FILEMARK, Mark, Medium
from splitmirror.media.labels import (
    FileLabel,
    FormatLabel,
    SetLabel,
    State,
    TapeFileKind,
    VolumeLabel,
)
from splitmirror.media.walking import label_text, read_record
from splitmirror.units import show_size


class Thing(enum.StrEnum):
    """What stands at a place."""

    LABEL = "label"
    DATA = "data"
    FILEMARK = "filemark"
    UNREADABLE = "unreadable"
    END = "end of data"


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What stands from object `object` on. `file`: how many filemarks come before it, so that
    `mt fsf FILE` from the beginning leads to its tape file as `mt` counts them. `count`: how many
    records; `length`: of the first, in bytes. `label`: its own text."""

    object: int
    file: int
    thing: Thing
    words: str
    count: int = 1
    length: int = 0
    label: str = ""


def dump(medium: Medium) -> Iterator[Told]:
    """What stands on a loaded volume, from its beginning to the end of its data. What cannot be
    read is told, and passed over where the drive can space over it."""
    medium.locate(0)
    at, file = 0, 0
    while True:
        try:
            found = read_record(medium)
            told = _mark(found, at, file) if isinstance(found, Mark) else None
            if told is None:
                assert isinstance(found, bytes)
                told = _label(found, at, file) or _data(medium, found, at, file)
        except MediumError as error:
            told = Told(object=at, file=file, thing=Thing.UNREADABLE, words=str(error), count=0)
        yield told
        if told.thing is Thing.END:
            return
        if told.thing is Thing.UNREADABLE:
            if not _passed(medium, at):
                return
            at, file = medium.tell(), file + 1
            continue
        at, file = at + told.count, file + (told.thing is Thing.FILEMARK)


def _passed(medium: Medium, at: int) -> bool:
    """Go behind the next filemark, and whether that led away from an unreadable object."""
    try:
        medium.space_filemarks(1)
        return medium.tell() > at
    except MediumError:
        return False


def _mark(found: Mark, at: int, file: int) -> Told:
    if found is FILEMARK:
        return Told(object=at, file=file, thing=Thing.FILEMARK, words="filemark")
    return Told(object=at, file=file, thing=Thing.END, words="end of data", count=0)


def _data(medium: Medium, first: bytes, at: int, file: int) -> Told:
    """The records from `first`, which was read, up to the next mark; stands before that."""
    try:
        medium.space_filemarks(1)
        count = medium.tell() - 1 - at
    except MediumError:
        # Spacing stops at the end of data; only a read tells that from a fault.
        if read_record(medium) is not END_OF_DATA:
            raise
        count = medium.tell() - at
    medium.locate(at + count)
    size = show_size(len(first))
    words = f"{count} records, the first of {size}" if count > 1 else f"a record of {size}"
    return Told(object=at, file=file, thing=Thing.DATA, words=words, count=count, length=len(first))


def _label(record: bytes, at: int, file: int) -> Told | None:
    """None when the record is no label."""
    text = label_text(record)
    if not text:
        return None
    try:
        words = _words(record, text[:4])
    except (WrongMedium, MediumDamaged):
        words = "not a label of ours"
    return Told(
        object=at, file=file, thing=Thing.LABEL, words=words, length=len(record), label=text
    )


def _words(record: bytes, name: str) -> str:
    if name == "VOL1":
        return f"volume {VolumeLabel.parse(record).serial}"
    if name in ("HDR1", "EOF1"):
        return _file_words(FileLabel.parse(record))
    if name in ("HDR2", "EOF2"):
        layout = FormatLabel.parse(record)
        kind = "fixed" if layout.record_format == "F" else "undefined"
        return f"records of {kind} format in blocks of {show_size(layout.block_size)}"
    if name in ("HDR3", "EOF3"):
        return _set_words(SetLabel.parse(record))
    return "not a label of ours"


def _file_words(label: FileLabel) -> str:
    told = f"{label.name} of {label.created:%Y-%m-%d}, tape file {label.sequence - 1}"
    return f"{told} ends after {label.blocks} records" if label.end else f"{told} begins"


def _set_words(label: SetLabel) -> str:
    catalogue = label.kind is TapeFileKind.CATALOGUE
    what = "the catalogue" if catalogue else f"part {label.part_number}"
    told = f"{what} of the set {label.set_id}"
    if label.state is State.OPEN:
        return told
    state = "complete" if label.state is State.COMPLETE else "ABANDONED"
    return f"{told}: {state}, {label.blocks} records"

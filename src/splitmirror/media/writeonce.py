"""Closing what a run left unfinished on a volume that can be written once only.

Elsewhere the next tape file is written over it. Here it gets what is missing of it, and labels
behind it that say it was abandoned (state A in EOF3), so that whoever walks the volume passes over
it. Nothing that stands is touched: only what comes behind it is written. But for one thing: a tape
driver that a crash closes puts a filemark behind the last record. Where that stands between labels
it is written over, which drives allow for a filemark with nothing behind it.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

from splitmirror.errors import MediumError
from splitmirror.media import END_OF_DATA, FILEMARK, Mark, Medium
from splitmirror.media.labels import (
    FileLabel,
    FormatLabel,
    LabelGroup,
    SetLabel,
    State,
    TapeFileKind,
    label_records,
)
from splitmirror.media.walking import VolumeEnd, read_record

_LABELS = 3  # before the data, and again behind them
_ANY_BLOCK_SIZE = 256 << 10  # of a tape file whose HDR2 was never written, and so without data


def close_unfinished(medium: Medium, end: VolumeEnd) -> VolumeEnd:
    """Close the tape file that stands unfinished where the volume ends, if there is one; where the
    volume ends now. A second call is harmless.

    A file of which only the last filemark was missing is complete then. Raises EndOfMedium when the
    labels do not fit any more, and MediumError.
    """
    begin, fixed = end.object, medium.limits.fixed
    end_of_data = _end_of_data(medium, begin)
    if 0 < end_of_data - begin <= _LABELS:
        end_of_data -= _is_filemark(medium, end_of_data - 1)
    if end_of_data == begin:
        return dataclasses.replace(end, unfinished=None)
    before = _labels_at(medium, begin, end_of_data)
    data = begin + _LABELS + 1
    behind_data = _behind_filemark(medium, data) if end_of_data > data else None
    blocks = max(0, (end_of_data if behind_data is None else behind_data - 1) - data)
    there = 0 if behind_data is None else end_of_data - behind_data  # labels behind the data
    if 1 < there <= _LABELS and _is_filemark(medium, end_of_data - 1):
        end_of_data, there = end_of_data - 1, there - 1
    after = dataclasses.replace(before, state=State.ABANDONED, blocks=blocks).pack()
    medium.locate(end_of_data)
    if end_of_data < data:
        if missing := before.pack()[end_of_data - begin :]:
            medium.write(label_records(missing, fixed))
        medium.write_filemarks(1, sync=False)
    if behind_data is None:
        medium.write_filemarks(1, sync=False)
    if there < _LABELS:
        medium.write(label_records(after[there:], fixed))
    medium.write_filemarks(1, sync=True)
    return VolumeEnd(object=medium.tell(), tape_file=end.tape_file + 1, closed=False)


def _is_filemark(medium: Medium, position: int) -> bool:
    medium.locate(position)
    return read_record(medium) is FILEMARK


def _end_of_data(medium: Medium, begin: int) -> int:
    """Found by spacing, which stops there."""
    medium.locate(begin)
    while _space(medium):
        pass
    return medium.tell()


def _behind_filemark(medium: Medium, data: int) -> int | None:
    """The object behind the filemark that ends the data; None: it was never written."""
    medium.locate(data)
    return medium.tell() if _space(medium) else None


def _space(medium: Medium) -> bool:
    """Go behind the next filemark; False: there is none, and this is the end of data."""
    try:
        medium.space_filemarks(1)
    except MediumError:
        if read_record(medium) is not END_OF_DATA:  # only a read tells that from a fault
            raise
        return False
    return True


def _labels_at(medium: Medium, begin: int, end_of_data: int) -> LabelGroup:
    """What the labels before the data say, or would have said."""
    medium.locate(begin)
    labels = []
    for _ in range(min(_LABELS, end_of_data - begin)):
        label = read_record(medium)
        assert not isinstance(label, Mark)
        labels.append(label)
    return _described(labels)


def _described(labels: Sequence[bytes]) -> LabelGroup:
    """Of labels that were never written: what agrees with those that were."""
    first = FileLabel.parse(labels[0])
    block_size, record_format = _ANY_BLOCK_SIZE, "U"
    if len(labels) > 1:
        layout = FormatLabel.parse(labels[1])
        block_size, record_format = layout.block_size, layout.record_format
    number = re.fullmatch(r"PART-(\d{6})", first.name)
    kind = TapeFileKind.PART if number else TapeFileKind.CATALOGUE
    set_id, part_number = first.set_identifier, int(number[1]) if number else 1
    if len(labels) == _LABELS:
        ours = SetLabel.parse(labels[2])
        set_id, part_number, block_size = ours.set_id, ours.part_number, ours.block_size
    return LabelGroup(
        kind=kind,
        state=State.OPEN,
        set_id=set_id,
        part_number=part_number,
        block_size=block_size,
        sequence=first.sequence,
        created=first.created,
        record_format=record_format,
    )

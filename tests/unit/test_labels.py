"""The labels against the standard's columns, and what is refused."""

from __future__ import annotations

import datetime
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitmirror.errors import MediumDamaged, MediumError, WrongMedium
from splitmirror.media.labels import (
    FileLabel,
    FormatLabel,
    LabelGroup,
    SetLabel,
    State,
    TapeFileKind,
    VolumeLabel,
    set_identifier,
)

GROUP = LabelGroup(
    kind=TapeFileKind.PART,
    state=State.COMPLETE,
    set_id="20240229T134501-0a1b2c3d",
    part_number=12,
    block_size=262144,
    sequence=34,
    created=datetime.date(2024, 2, 29),
    blocks=4096,
)


def columns(label: bytes, first: int, last: int) -> str:
    """As the standard counts them: from 1, both included."""
    return label[first - 1 : last].decode()


def test_vol1_has_its_fields_in_the_standards_columns() -> None:
    label = VolumeLabel(serial="SM0001").pack()
    assert len(label) == 80
    assert columns(label, 1, 4) == "VOL1"
    assert columns(label, 5, 10) == "SM0001"
    assert columns(label, 25, 37) == "SPLITMIRROR  "
    assert columns(label, 80, 80) == "4"


def test_hdr1_and_eof1_have_their_fields_in_the_standards_columns() -> None:
    label = GROUP.pack()[0]
    assert len(label) == 80
    assert columns(label, 1, 4) == "EOF1"
    assert columns(label, 5, 21) == "PART-000012".ljust(17)
    assert columns(label, 22, 27) == "1B2C3D"
    assert columns(label, 28, 31) == "0001"
    assert columns(label, 32, 35) == "0034"
    assert columns(label, 42, 47) == "024060"
    assert columns(label, 48, 53) == "099365"
    assert columns(label, 55, 60) == "004096"
    assert columns(label, 61, 73) == "SPLITMIRROR  "
    assert columns(replace(GROUP, state=State.OPEN, blocks=0).pack()[0], 1, 4) == "HDR1"


def test_hdr2_tells_large_blocks_where_ibm_does() -> None:
    large, small = FormatLabel(end=False, block_size=262144), FormatLabel(end=True, block_size=8192)
    assert columns(large.pack(), 5, 15) == "U" + "0" * 10
    assert columns(large.pack(), 71, 80) == "0000262144"
    assert columns(small.pack(), 5, 15) == "U0819208192"
    assert columns(small.pack(), 1, 4) == "EOF2"


def test_hdr3_names_the_whole_set() -> None:
    label = GROUP.pack()[2]
    assert len(label) == 80
    assert columns(label, 1, 8) == "EOF301PC"
    assert columns(label, 9, 40) == "20240229T134501-0a1b2c3d".ljust(32)
    assert columns(label, 41, 53) == "000012" + "0262144"
    assert columns(label, 54, 65) == "000000004096"


def test_the_file_of_a_catalogue_is_named_so() -> None:
    label = replace(GROUP, kind=TapeFileKind.CATALOGUE).pack()[0]
    assert columns(label, 5, 21) == "CATALOGUE".ljust(17)


@given(
    kind=st.sampled_from(TapeFileKind),
    state=st.sampled_from(State),
    part=st.integers(1, 999_999),
    size=st.integers(1, (1 << 24) - 1),
    sequence=st.integers(1, 200_000),
    blocks=st.integers(0, 10**12 - 1),
    date=st.dates(datetime.date(1900, 1, 1), datetime.date(2099, 12, 31)),
)
def test_a_group_of_labels_is_read_back_as_it_was(
    kind: TapeFileKind,
    state: State,
    part: int,
    size: int,
    sequence: int,
    blocks: int,
    date: datetime.date,
) -> None:
    if state is State.OPEN:
        blocks = 0
    if size > 9_999_999:
        size //= 2
    group = replace(
        GROUP, kind=kind, state=state, part_number=part, block_size=size, blocks=blocks,
        sequence=sequence, created=date,
    )  # fmt: skip
    assert LabelGroup.parse(group.pack(), sequence) == group


def test_labels_that_a_drive_padded_are_read() -> None:
    padded = [label.ljust(512, b"\0") for label in GROUP.pack()]
    assert LabelGroup.parse(padded, 34) == GROUP
    assert VolumeLabel.parse(VolumeLabel(serial="SM0001").pack().ljust(512, b"\0"))


@given(number=st.integers(0, 2), at=st.integers(0, 79), byte=st.integers(0, 255).map(lambda x: [x]))
def test_a_changed_byte_is_never_read_as_another_tape_file(
    number: int, at: int, byte: list[int]
) -> None:
    labels = [bytearray(label) for label in GROUP.pack()]
    labels[number][at : at + 1] = bytes(byte)
    try:
        found = LabelGroup.parse(list(map(bytes, labels)), 34)
    except MediumError:
        return
    # What stands in one label only may change: the date, the record format, the set's full id,
    # the kind of the end, the block count above six digits (which the walk counts itself).
    assert found.blocks % 10**6 == GROUP.blocks % 10**6
    assert (
        replace(
            found,
            created=GROUP.created,
            set_id=GROUP.set_id,
            blocks=GROUP.blocks,
            state=GROUP.state,
            record_format=GROUP.record_format,
        )
        == GROUP
    )


def test_labels_out_of_their_place_are_damage() -> None:
    with pytest.raises(MediumDamaged, match="agree"):
        LabelGroup.parse(GROUP.pack(), 33)


def test_labels_of_two_tape_files_are_damage() -> None:
    other = replace(GROUP, part_number=13).pack()
    with pytest.raises(MediumDamaged):
        LabelGroup.parse([GROUP.pack()[0], GROUP.pack()[1], other[2]], 34)


@pytest.mark.parametrize("parse", [FileLabel.parse, FormatLabel.parse, SetLabel.parse])
@pytest.mark.parametrize("label", [b"", b"HDR1", b"\xff" * 80, b" " * 80, b"HDR9".ljust(80)])
def test_what_is_no_label_is_damage(parse: object, label: bytes) -> None:
    with pytest.raises(MediumDamaged) as caught:
        parse(label)  # type: ignore[operator]
    assert caught.value.hint


@pytest.mark.parametrize("label", [b"", b"data", b"HDR1".ljust(80), b"\0" * 80])
def test_a_volume_without_vol1_is_not_ours(label: bytes) -> None:
    with pytest.raises(WrongMedium, match="does not begin with a label"):
        VolumeLabel.parse(label)


def test_a_volume_of_another_program_is_named() -> None:
    label = VolumeLabel(serial="PAY001").pack().replace(b"SPLITMIRROR  ", b"OTHERBACKUP  ", 1)
    with pytest.raises(WrongMedium, match=r"PAY001.*OTHERBACKUP"):
        VolumeLabel.parse(label)


def test_a_later_format_is_refused_as_that() -> None:
    label = GROUP.pack()[2].replace(b"EOF301", b"EOF302")
    with pytest.raises(WrongMedium, match="version 2"):
        SetLabel.parse(label)


@pytest.mark.parametrize("serial", ["", "SM1", "sm0001", "SM 001", "SM00011", "SMÄ001"])
def test_a_serial_is_six_capitals_and_digits(serial: str) -> None:
    with pytest.raises(ValueError):
        VolumeLabel(serial=serial)


@pytest.mark.parametrize(
    "change",
    [
        {"set_id": ""},
        {"set_id": "x" * 33},
        {"set_id": "a b"},
        {"part_number": 0},
        {"part_number": 1_000_000},
        {"block_size": 0},
        {"blocks": -1},
        {"state": State.OPEN},
        {"created": datetime.date(2100, 1, 1)},
    ],
)
def test_what_a_label_cannot_hold_is_not_written(change: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        replace(GROUP, **change).pack()  # type: ignore[arg-type]


def test_the_set_identifier_is_what_all_volumes_of_a_set_share() -> None:
    assert set_identifier("20240229T134501-0a1b2c3d") == "1B2C3D"
    assert set_identifier("ab-c") == "ABC"

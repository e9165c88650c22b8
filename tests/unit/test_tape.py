"""What of tape needs no drive: settings, words, rates, names, sense data."""

from __future__ import annotations

import struct
from typing import Any

import pytest

from splitmirror.drivers import driver
from splitmirror.errors import ConfigError, MediumError
from splitmirror.media import Ejecting, Identified, Paced, Telling, WriteOnce
from splitmirror.media.tape import Settings, open_drives, open_medium
from splitmirror.media.tapealerts import in_words
from splitmirror.system import st
from splitmirror.system.sgio import Sense, parse_sense

LTO8, UNKNOWN = 0x5E, 0x25


def settings(**values: Any) -> Settings:
    table = {"driver": "tape", "drives": ["/dev/nst0"], **values}
    found: Settings = driver("media", "medium", table)[1]
    return found


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"drives": []}, "drives is empty"),
        ({"drives": ["nst0"]}, "no device file"),
        ({"drives": ["/dev/nst0", "/dev/st1"]}, "/dev/st1, which rewinds"),
        ({"drives": ["/dev/tape/by-id/scsi-1234"]}, "rewinds"),
        ({"changer": "sch0"}, "no device file"),
        ({"native_rate": "fast"}, "native_rate = 'fast' is no size"),
        ({"native_rate": "10M", "minimum_rate": "11M"}, "no drive can keep"),
        ({"native_rate": 0}, "no drive can keep"),
        ({"buffer_s": 0}, "no drive can keep"),
        ({"buffer_mark": 1.5}, "no drive can keep"),
        ({"drive": "/dev/nst0"}, "unknown field"),
    ],
)
def test_settings_that_cannot_be_are_refused(values: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigError, match=why) as caught:
        settings(**values)
    assert caught.value.hint


def test_the_hint_names_the_device_file_that_does_not_rewind() -> None:
    with pytest.raises(ConfigError) as caught:
        settings(drives=["/dev/st1"])
    assert "/dev/nst1" in caught.value.hint


@pytest.mark.parametrize(
    ("name", "better"),
    [
        ("/dev/nst0", None),
        ("/dev/nst12", None),
        ("/dev/tape/by-id/scsi-3500-nst", None),
        ("/dev/st0", "/dev/nst0"),
        ("/dev/st12m", "/dev/nst12m"),
        ("/dev/tape/by-id/scsi-3500", "/dev/tape/by-id/scsi-3500-nst"),
    ],
)
def test_a_device_file_that_rewinds_is_told_by_its_name(name: str, better: str | None) -> None:
    assert st.not_rewinding(name) == better


def test_there_is_a_medium_for_each_drive_and_the_first_is_the_medium() -> None:
    both = settings(drives=["/dev/nst0", "/dev/nst1"], changer="/dev/sch0")
    assert [drive.name for drive in open_drives(both)] == ["/dev/nst0", "/dev/nst1"]
    assert open_medium(both).name == "/dev/nst0"


def test_what_a_drive_can_do_is_known_before_it_is_touched() -> None:
    medium = open_medium(settings(drives=["/dev/nst-that-is-not-there"]))
    for more in (Paced, WriteOnce, Ejecting, Telling, Identified):
        assert isinstance(medium, more)
    assert not medium.write_once
    medium.unload()


def test_a_drive_that_is_not_there_is_told() -> None:
    with pytest.raises(MediumError, match="there is no tape drive /dev/nst-none") as caught:
        open_medium(settings(drives=["/dev/nst-none"])).load(writable=True)
    assert "lsscsi" in caught.value.hint


def test_a_device_that_is_no_tape_drive_is_told() -> None:
    with pytest.raises(ConfigError, match="/dev/null is not a tape drive"):
        open_medium(settings(drives=["/dev/null"])).load(writable=False)


def test_the_pace_is_that_of_the_cartridges_generation() -> None:
    pace = settings().pace(LTO8)
    assert (pace.native, pace.least) == (360_000_000, 112_000_000)
    assert settings().pace(UNKNOWN).least == 0


def test_rates_that_are_set_go_before_those_that_are_known() -> None:
    pace = settings(native_rate="100M", buffer_s=4, buffer_mark=0.5).pace(LTO8)
    assert (pace.native, pace.least) == (100 << 20, 100 << 20)  # never above the native one
    assert (pace.buffer_s, pace.mark) == (4, 0.5)
    assert settings(minimum_rate="300M").pace(LTO8).least == 300 << 20


def test_alerts_are_told_in_words_with_their_numbers() -> None:
    assert in_words([20, 63]) == [
        "the drive must be cleaned now (TapeAlert 20)",
        "unknown (TapeAlert 63)",
    ]


def test_sense_data_tell_what_a_tape_met_in_either_format() -> None:
    fixed = struct.pack(">BxBiB4xBB4x", 0xF0, 0x80, 97, 10, 0x00, 0x01)
    stream, left = bytes([4, 2, 0, 0x80]), struct.pack(">BBBxq", 0, 10, 0x80, 97)
    descriptors = bytes([0x72, 0x00, 0x00, 0x01, 0, 0, 0, len(stream + left)]) + stream + left
    for data in (fixed, descriptors):
        sense = parse_sense(data)
        assert sense == Sense(key=0, asc=0, ascq=1)
        assert sense.filemark
        assert not sense.end_of_medium
        assert sense.information == 97


def test_sense_data_without_more_tell_no_more() -> None:
    for data in (bytes([0x70, 0, 0x03, *bytes(15)]), bytes([0x72, 0x03, *bytes(6)])):
        sense = parse_sense(data)
        assert sense is not None
        assert (sense.key, sense.filemark, sense.information) == (3, False, None)
    assert parse_sense(b"") is None

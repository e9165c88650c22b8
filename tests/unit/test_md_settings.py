"""What [mirror] with driver = "md" may say, and what is told of an array before a split."""

from __future__ import annotations

import struct
from dataclasses import replace
from pathlib import Path

import pytest

from splitmirror.errors import ConfigError, MirrorNotReady, UnsafeMirror
from splitmirror.mirrors import Feature, md
from splitmirror.mirrors.md import ArraySettings, Settings
from splitmirror.system import mdchecks, mdsuper
from splitmirror.system.md import Array, Member

MEMBER = Member(
    name="sda1", path="/dev/sda1", devno=1, state=frozenset({"in_sync"}), slot=0,
    data_offset=1 << 20, bad_blocks=False, device="a" * 32,
)  # fmt: skip
LEG = replace(MEMBER, name="sdb1", path="/dev/sdb1", devno=2, slot=1, device="b" * 32)
ARRAY = Array(
    name="md0", path="/dev/md0", devno=9, uuid="c" * 32, level="raid1", metadata="1.2",
    state="clean", disks=2, size=1 << 30, missing=0, syncing=False, done=0, total=0,
    bitmap="internal", chunk=64 << 20, write_behind=False, members=(MEMBER, LEG),
)  # fmt: skip


@pytest.mark.parametrize("devices", [(), ("/dev/md0", "/dev/md0"), ("md0",)])
def test_arrays_are_named_once_and_from_the_root_on(devices: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError):
        Settings(arrays=tuple(ArraySettings(device=device) for device in devices))


def test_one_array_is_split_at_one_instant_and_several_are_not(tmp_path: Path) -> None:
    for count in (1, 2):
        arrays = tuple(ArraySettings(device=f"/dev/md{number}") for number in range(count))
        features = md.open_mirror(Settings(arrays=arrays), tmp_path).features
        assert (Feature.GROUP_SPLIT in features) == (count == 1)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"level": "raid5"}, "no whole copy"),
        ({"metadata": "1.0"}, "metadata 1.0"),
        ({"metadata": "external:imsm"}, "external:imsm"),
        ({"bitmap": "none"}, "no bitmap"),
        ({"bitmap": "/bitmap"}, "in /bitmap"),
        ({"state": "inactive"}, "does not run"),
    ],
)
def test_an_array_that_cannot_be_split_is_refused(change: dict[str, str], said: str) -> None:
    with pytest.raises((UnsafeMirror, MirrorNotReady), match=said) as refused:
        mdchecks.check_kind(replace(ARRAY, **change))  # type: ignore[arg-type]
    assert refused.value.hint
    mdchecks.check_kind(ARRAY)


def test_a_leg_that_need_not_hold_what_was_acknowledged_is_refused() -> None:
    behind = replace(LEG, state=frozenset({"in_sync", "write_mostly"}))
    with pytest.raises(UnsafeMirror, match="behind"):
        mdchecks.check_leg(replace(ARRAY, write_behind=True), behind)
    with pytest.raises(UnsafeMirror, match="bad blocks"):
        mdchecks.check_leg(ARRAY, replace(LEG, bad_blocks=True))
    mdchecks.check_leg(ARRAY, behind)
    mdchecks.check_leg(ARRAY, LEG)


def test_a_member_that_failed_is_no_mirror_and_is_not_on_its_way() -> None:
    failed = replace(LEG, state=frozenset({"faulty", "blocked"}), slot=None)
    assert replace(ARRAY, members=(MEMBER, failed)).in_sync == (MEMBER,)
    assert not failed.joining
    assert replace(LEG, state=frozenset({"spare"})).joining


def superblock(place: int, *, bitmap: bool) -> bytes:
    """As linux/raid/md_p.h lays it out."""
    head = struct.pack("<4I16s32s", 0xA92B4EFC, 1, int(bitmap), 0, b"A" * 16, b"host:0")
    array = struct.pack("<QiIQIIi28x", 0, 1, 0, 1 << 21, 0, 2, 8)
    device = struct.pack("<QQQQII16s8x", 2048, 1 << 21, place // 512, 0, 1, 0, b"D" * 16)
    return head + array + device + struct.pack("<QQ", 0, 42)


@pytest.mark.parametrize(("version", "place"), [("1.1", 0), ("1.2", 4096)])
def test_a_superblock_is_read_at_its_place(version: str, place: int) -> None:
    found = mdsuper.parse(superblock(place, bitmap=True), version, place)
    assert found is not None
    assert (found.array_uuid, found.device_uuid) == ((b"A" * 16).hex(), (b"D" * 16).hex())
    assert (found.events, found.data_offset, found.bitmap) == (42, 1 << 20, place + 4096)
    without = mdsuper.parse(superblock(place, bitmap=False), version, place)
    assert without is not None
    assert without.bitmap is None


def test_what_is_no_superblock_or_another_devices_is_none() -> None:
    assert mdsuper.parse(bytes(4096), "1.2", 4096) is None
    assert mdsuper.parse(b"short", "1.2", 4096) is None
    assert mdsuper.parse(superblock(0, bitmap=True), "1.2", 4096) is None

from __future__ import annotations

import os
from pathlib import Path

import pytest

from splitmirror.errors import DeviceFailed
from splitmirror.system import blockdev
from splitmirror.system.devicemapper import Target

DM = os.makedev(253, 0)


def parsed(table: str) -> blockdev.Layer:
    """Of a table as dmsetup(8) prints it."""
    lines = [line.split() for line in table.splitlines()]
    targets = [
        Target(start=int(start), length=int(length), kind=kind, arguments=tuple(arguments))
        for start, length, kind, *arguments in lines
    ]
    return blockdev.parse_table(targets, DM, "/dev/mapper/x")


def test_one_linear_segment_is_followed_to_its_offset() -> None:
    layer = parsed("0 2097152 linear 8:17 2048\n")
    assert (layer.kind, layer.below, layer.offset) == ("linear", os.makedev(8, 17), 2048 * 512)


@pytest.mark.parametrize(
    ("table", "kind"),
    [
        ("0 100 linear 8:1 0\n100 100 linear 8:2 0\n", "dm linear in 2 pieces"),
        ("0 100 crypt aes-xts-plain64 :64:logon:x 0 8:1 4096\n", "dm crypt"),
        ("0 100 thin 253:4 1\n", "dm thin"),
        ("0 100 raid raid1 3 0 region_size 1024 2 253:1 253:2 253:3 253:4\n", "dm raid"),
        ("0 100 linear 8:1 0\n100 100 zero\n", "dm linear and zero"),
        ("", "dm empty"),
    ],
)
def test_anything_else_is_named_and_not_followed(table: str, kind: str) -> None:
    layer = parsed(table)
    assert (layer.kind, layer.below) == (kind, None)


def test_a_number_that_is_no_block_device_is_refused() -> None:
    with pytest.raises(DeviceFailed, match="not a block device"):
        blockdev.walk(os.stat("/proc").st_dev)


def test_what_is_no_device_node_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DeviceFailed, match="not a block device"):
        blockdev.devno_of(str(tmp_path))
    with pytest.raises(DeviceFailed, match="no device"):
        blockdev.devno_of(str(tmp_path / "missing"))


def test_the_size_of_a_file_is_its_length(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(12345))
    assert blockdev.size(tmp_path / "file") == 12345


def entry(folder: Path, **files: str) -> Path:
    """A directory as sysfs has one for a device."""
    for name, text in files.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return folder


def test_an_array_is_named_by_its_level(tmp_path: Path) -> None:
    assert blockdev._kind(entry(tmp_path / "md0", md__level="raid1")) == "md raid1"


def test_a_mapping_that_is_not_known_is_named_and_no_disk(tmp_path: Path) -> None:
    found = blockdev._kind(entry(tmp_path / "strange0", slaves__sda=""))
    assert found == "unknown mapping strange0"
    assert blockdev._kind(entry(tmp_path / "bcache0", bcache__state="")) == "bcache"


def test_a_device_with_nothing_below_is_a_disk(tmp_path: Path) -> None:
    (tmp_path / "sda" / "slaves").mkdir(parents=True)
    assert blockdev._kind(tmp_path / "sda") == "disk"

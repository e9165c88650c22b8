"""From a root down to the mirror: what is accepted, and what is refused by name."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from splitmirror.databases import Keep, Root
from splitmirror.errors import ConfigError, NotOnMirror, UnsupportedStack
from splitmirror.extents.trees import on_volume, plan_trees, refuse_second_device, wanted
from splitmirror.model import Volume
from splitmirror.system.blockdev import Layer
from splitmirror.system.filesystems import Mount

MIRROR = Volume(name="vg/data", device="/dev/vg/data", size=1 << 30)
VOLUMES = {os.makedev(253, 7): MIRROR}
WHAT = "/srv/pg (ext4 on /dev/x)"


def layer(
    kind: str,
    number: int,
    *,
    below: int | None = None,
    offset: int = 0,
    backing: str | None = None,
) -> Layer:
    return Layer(
        devno=os.makedev(253, number),
        path=f"/dev/dm-{number}",
        kind=kind,
        below=below and os.makedev(253, below),
        offset=offset,
        backing=backing,
    )


def never(path: str) -> bool:
    raise AssertionError("not asked")


def test_linear_layers_add_up_to_the_offset_on_the_volume() -> None:
    stack = [
        layer("partition", 1, below=2, offset=1 << 20),
        layer("linear", 2, below=7, offset=3 << 20),
        layer("dm raid", 7),
    ]

    assert on_volume(WHAT, stack, VOLUMES, never) == (MIRROR, 4 << 20)


def test_what_lies_below_the_volume_is_the_engines_business() -> None:
    stack = [layer("linear", 7, below=3, offset=5), layer("dm crypt", 3)]

    assert on_volume(WHAT, stack, VOLUMES, never) == (MIRROR, 0)


@pytest.mark.parametrize(
    "kind",
    ["dm crypt", "dm thin", "dm linear in 2 pieces", "dm cache", "bcache", "md raid5",
     "unknown mapping rbd0"],
)  # fmt: skip
def test_anything_but_a_linear_mapping_is_refused_by_its_name(kind: str) -> None:
    stack = [layer("partition", 1, below=2), layer(kind, 2)]

    with pytest.raises(UnsupportedStack, match=kind) as refused:
        on_volume(WHAT, stack, VOLUMES, never)

    assert WHAT in str(refused.value)
    assert "/dev/dm-2" in str(refused.value)


def test_a_filesystem_on_another_disk_is_not_on_the_mirror() -> None:
    with pytest.raises(NotOnMirror, match="the disk /dev/dm-2") as refused:
        on_volume(WHAT, [layer("partition", 1, below=2), layer("disk", 2)], VOLUMES, never)

    assert "/dev/vg/data" in refused.value.hint


def test_a_loop_over_a_file_is_off_the_mirror_or_unsupported_if_the_file_is_on_it() -> None:
    stack = [layer("loop", 1, backing="/var/disk.img")]

    with pytest.raises(NotOnMirror, match=r"loop device over /var/disk\.img"):
        on_volume(WHAT, stack, VOLUMES, lambda path: False)
    with pytest.raises(UnsupportedStack, match=r"loop device over /var/disk\.img"):
        on_volume(WHAT, stack, VOLUMES, lambda path: path == "/var/disk.img")


@pytest.mark.parametrize(
    ("option", "named"), [("rtdev=/dev/sdb", "realtime"), ("logdev=/dev/sdc", "log device")]
)
def test_an_xfs_with_a_second_device_is_refused_by_what_it_is(option: str, named: str) -> None:
    mount = Mount(
        mount_id=1,
        mountpoint="/srv",
        devno=os.makedev(253, 7),
        root="/",
        fstype="xfs",
        options=frozenset(("rw", "relatime", option)),
        source="/dev/vg/data",
    )

    with pytest.raises(UnsupportedStack, match=named):
        refuse_second_device(WHAT, b"/srv", mount)


def test_a_root_that_does_not_exist_is_named() -> None:
    with pytest.raises(ConfigError, match="/does/not/exist"):
        plan_trees([Root(name=b"data", path=b"/does/not/exist")], [])


def test_a_filesystem_without_a_disk_is_not_on_the_mirror() -> None:
    with pytest.raises(NotOnMirror, match="/proc"):
        plan_trees([Root(name=b"data", path=b"/proc/self/fd")], [])


def test_nothing_is_mirrored_where_there_is_no_mirror(tmp_path: Path) -> None:
    with pytest.raises((NotOnMirror, UnsupportedStack)):
        plan_trees([Root(name=b"data", path=os.fsencode(tmp_path))], [])


def test_a_mount_belongs_to_the_set_unless_it_or_a_directory_above_is_left_out() -> None:
    def keep(name: bytes) -> Keep:
        left = {b"data/stat": Keep.EMPTY, b"data/tmp": Keep.LEAVE}
        return left.get(name, Keep.KEEP)

    assert wanted(b"data", b"data/more/mnt", keep)
    for name in (b"data/stat", b"data/stat/deeper", b"data/tmp/x/y"):
        assert not wanted(b"data", name, keep)


def test_what_is_in_a_whole_directory_is_wanted_without_asking() -> None:
    asked: list[bytes] = []

    def keep(name: bytes) -> Keep:
        asked.append(name)
        return Keep.WHOLE if name == b"data/all" else Keep.KEEP

    assert wanted(b"data", b"data/all/deeper/mnt", keep)
    assert asked == [b"data", b"data/all"]

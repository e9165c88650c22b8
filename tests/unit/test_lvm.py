"""What of LVM and dm-raid can be tried without a kernel that has them: reading what they say."""

from __future__ import annotations

import msgspec
import pytest

from splitmirror.errors import ConfigError, UnsafeMirror
from splitmirror.mirrors import lvm
from splitmirror.system.devicemapper import Target
from splitmirror.system.dmraid import Array, ArrayStatus


def target(line: str) -> Target:
    start, length, kind, *arguments = line.split()
    return Target(start=int(start), length=int(length), kind=kind, arguments=tuple(arguments))


TWO = "0 131072 raid raid1 3 0 region_size 4096 2 253:0 253:1 253:2 253:3"
THREE = "0 98304 raid raid1 5 0 region_size 4096 writemostly 1 3 1:0 1:1 - - 1:4 1:5"


def test_a_table_without_a_leg_differs_in_that_leg_alone() -> None:
    array = Array.of([target(TWO)])
    assert array.pairs == (("253:0", "253:1"), ("253:2", "253:3"))
    assert " ".join(array.without(1).arguments) == "raid1 3 0 region_size 4096 2 253:0 253:1 - -"
    assert " ".join(array.without(0).arguments) == "raid1 3 0 region_size 4096 2 - - 253:2 253:3"


def test_the_legs_are_found_behind_whatever_parameters_there_are() -> None:
    array = Array.of([target(THREE)])
    assert [array.present(position) for position in range(3)] == [True, False, True]


@pytest.mark.parametrize(
    "lines",
    [
        ["0 8 linear 8:0 0"],
        ["0 8 raid raid5_ls 3 128 region_size 4096 2 1:0 1:1 1:2 1:3"],
        ["0 8 snapshot-origin 253:5"],
        [TWO, "131072 8 linear 8:0 0"],
        [],
    ],
)
def test_what_is_not_one_raid1_is_refused(lines: list[str]) -> None:
    with pytest.raises(UnsafeMirror):
        Array.of([target(line) for line in lines])


@pytest.mark.parametrize(
    ("status", "level"),
    [
        ("raid1 2 AA 131072/131072 idle 0 0 -", True),
        ("raid1 2 AA 4096/131072 check 128 0 -", True),
        ("raid1 2 A- 131072/131072 idle 0 0 -", False),
        ("raid1 2 AD 131072/131072 idle 0 0 -", False),
        ("raid1 2 Aa 131072/131072 idle 0 0 -", False),
        ("raid1 2 AA 4096/131072 resync 0 0 -", False),
    ],
)
def test_level_is_every_leg_in_sync_and_nothing_copied(status: str, level: bool) -> None:
    assert ArrayStatus.of([target(f"0 131072 raid {status}")]).level is level


def test_a_status_is_in_bytes() -> None:
    status = ArrayStatus.of([target("0 131072 raid raid1 2 AA 8/131072 check 128 0 -")])
    assert (status.done, status.total, status.mismatched) == (4096, 64 << 20, 64 << 10)


@pytest.mark.parametrize(
    "volumes", [[], [{"lv": "va/a"}, {"lv": "va/a"}], [{"lv": "a"}], [{"lv": "/dev/va/a"}]]
)
def test_volumes_are_named_once_each_as_group_and_volume(volumes: list[dict[str, str]]) -> None:
    with pytest.raises((ConfigError, msgspec.ValidationError)):
        msgspec.convert({"volumes": volumes}, lvm.Settings)

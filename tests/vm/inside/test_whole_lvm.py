"""Whole backups on LVM raid1: ext4 for the data, xfs for the log, a volume each."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from tests.vm.inside import whole
from tests.vm.inside.whole import MIB, Scene, scene_on

from splitmirror.demo.below import Lvm
from splitmirror.demo.lab import Disk, Lab
from splitmirror.system import programs

pytestmark = pytest.mark.timeout(600)

test_init_and_doctor = whole.test_init_proposes_what_is_there_and_doctor_finds_it_well
test_it_comes_back = whole.test_a_backup_comes_back_with_every_acknowledged_transaction
test_only_changes_are_copied = whole.test_only_what_changed_is_copied_to_the_mirror_again
test_a_killed_one_is_put_right = whole.test_a_backup_killed_in_a_phase_is_put_right

DISKS = (
    Disk(name="data", fstype="ext4", size=128 * MIB),
    Disk(name="wal", fstype="xfs", size=320 * MIB),
)
SYNC_S = 60.0


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    with scene_on(Lvm(), DISKS, split_tracking_changes, merge) as made:
        yield made


def split_tracking_changes(lab: Lab, disk: Disk) -> None:
    tracked = ["--splitmirrors", "1", "--trackchanges"]
    programs.run(["lvconvert", "-q", "-y", *tracked, volume(lab, disk)], timeout_s=30)


def merge(lab: Lab, disk: Disk) -> None:
    programs.run(["lvconvert", "-q", "--merge", f"{volume(lab, disk)}_rimage_1"], timeout_s=30)
    until = time.monotonic() + SYNC_S
    report = ["lvs", "--noheadings", "-o", "copy_percent", volume(lab, disk)]
    while programs.run(report, timeout_s=30).strip() != "100.00":
        assert time.monotonic() < until


def volume(lab: Lab, disk: Disk) -> str:
    return f"{lab.base.name}/{disk.name}"

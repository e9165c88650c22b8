"""Whole backups on md raid1: ext4 for the data, ext4 for the log, an array each."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.vm.inside import whole
from tests.vm.inside.whole import MIB, Scene, scene_on

from splitmirror.demo.below import Md
from splitmirror.demo.lab import Disk, Lab
from splitmirror.system import programs

pytestmark = pytest.mark.timeout(600)

test_init_and_doctor = whole.test_init_proposes_what_is_there_and_doctor_finds_it_well
test_it_comes_back = whole.test_a_backup_comes_back_with_every_acknowledged_transaction
test_only_changes_are_copied = whole.test_only_what_changed_is_copied_to_the_mirror_again
# Killed backups on md are those of test_md_backup.py.

DISKS = (
    Disk(name="data", fstype="ext4", size=160 * MIB),
    Disk(name="wal", fstype="ext4", size=192 * MIB),
)


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    with scene_on(Md(), DISKS, fail_and_remove, re_add) as made:
        yield made


def fail_and_remove(lab: Lab, disk: Disk) -> None:
    array, member = parts(lab, disk)
    programs.run(["mdadm", "--quiet", array, "--fail", member], timeout_s=30)
    programs.run(["mdadm", "--quiet", array, "--remove", member], timeout_s=30)


def re_add(lab: Lab, disk: Disk) -> None:
    array, member = parts(lab, disk)
    programs.run(["mdadm", "--quiet", array, "--re-add", member], timeout_s=30)


def parts(lab: Lab, disk: Disk) -> tuple[str, str]:
    """The array of a disk, and the loop device over its mirror."""
    (array,) = Path("/dev/md").glob(f"*_{disk.name}")
    image = str(lab.image(disk.name, "mirror"))
    (member,) = (
        f"/dev/{path.parents[1].name}"
        for path in Path("/sys/block").glob("loop*/loop/backing_file")
        if path.read_text().strip() == image
    )
    return os.path.realpath(array), member

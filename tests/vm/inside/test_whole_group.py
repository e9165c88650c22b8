"""Whole backups of a database that lies on two kinds of mirror: its data on LVM, its log on md."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace

import pytest
from tests.vm.inside import test_whole_lvm as on_lvm
from tests.vm.inside import test_whole_md as on_md
from tests.vm.inside import whole
from tests.vm.inside.whole import MIB, Scene, scene_on

from splitmirror.demo.below import Below, Lvm, Md
from splitmirror.demo.lab import Disk, Lab

pytestmark = pytest.mark.timeout(600)

test_init_and_doctor = whole.test_init_proposes_what_is_there_and_doctor_finds_it_well
test_it_comes_back = whole.test_a_backup_comes_back_with_every_acknowledged_transaction

DISKS = (
    Disk(name="data", fstype="xfs", size=320 * MIB),
    Disk(name="wal", fstype="ext4", size=192 * MIB),
)


class LvmAndMd:
    """The data disk on a logical volume, the other one on an array."""

    def table(self, lab: Lab) -> str:
        members = (
            "\n[[mirror.members]]\n" + below.table(part).replace("[[mirror.", "[[mirror.members.")
            for below, part in self._parts(lab)
        )
        return 'driver = "group"\n' + "".join(members)

    def devices(self, lab: Lab, undo: ExitStack) -> dict[str, str]:
        found: dict[str, str] = {}
        for below, part in self._parts(lab):
            found |= below.devices(part, undo)
        return found

    def _parts(self, lab: Lab) -> tuple[tuple[Below, Lab], ...]:
        data, log = lab.disks
        return (Lvm(), replace(lab, disks=(data,))), (Md(), replace(lab, disks=(log,)))


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    with scene_on(LvmAndMd(), DISKS, split, give_back) as made:
        yield made


def split(lab: Lab, disk: Disk) -> None:
    if disk.name == "data":
        on_lvm.split_tracking_changes(lab, disk)
    else:
        on_md.fail_and_remove(lab, disk)


def give_back(lab: Lab, disk: Disk) -> None:
    if disk.name == "data":
        on_lvm.merge(lab, disk)
    else:
        on_md.re_add(lab, disk)

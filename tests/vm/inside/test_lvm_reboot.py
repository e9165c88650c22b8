"""The power is cut while legs are split, one in each way, and the volumes are being written."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
from tests.vm.inside.lvm_lab import MIB, Lv, Writer, make, mirror, read, run, until

from splitmirror.errors import LegError
from splitmirror.progress import silent
from splitmirror.system import programs

STATE = Path("/var/lib/lvm-reboot")
BY_TABLE = Lv(group="va", name="table", mib=24, disks=("a", "b"))
BY_LVM = Lv(group="vb", name="lvm", mib=24, disks=("c", "d"))


def test_split_under_a_steady_load() -> None:
    run("modprobe", "-a", "dm-mod", "dm-raid", "raid1")
    STATE.mkdir(exist_ok=True)
    for lv in (BY_TABLE, BY_LVM):
        run("vgcreate", lv.group, *(f"/dev/disk/by-id/virtio-{disk}" for disk in lv.disks))
        make(lv)
    for lv, way in ((BY_TABLE, "device-mapper"), (BY_LVM, "lvconvert")):
        engine = mirror(STATE, lv, split=way)
        engine.synchronize(silent)
        Writer(lv.device, lv.mib * MIB).__enter__()  # until the power is cut
        engine.split("one")
        engine.leg("one", 10)
    (STATE / "leg").write_text(digest(BY_LVM))
    os.sync()
    run("dmsetup", "status")


def digest(lv: Lv) -> str:
    return hashlib.sha256(read(lv.image(1), 0, lv.mib * MIB)).hexdigest()


def test_after_the_reboot() -> None:
    by_lvm, by_table = mirror(STATE, BY_LVM, split="lvconvert"), mirror(STATE, BY_TABLE)
    until(lambda: all(Path(lv.device).exists() for lv in (BY_LVM, BY_TABLE)))
    assert by_lvm.state().split_id == "one"
    assert by_lvm.leg("one", 10).volumes
    assert digest(BY_LVM) == (STATE / "leg").read_text()
    assert by_table.state().split_id is None
    with pytest.raises(LegError, match="started again"):
        by_table.leg("one", 10)
    for engine in (by_lvm, by_table):
        engine.rejoin("one")
        engine.synchronize(silent)
        assert engine.state().level
        assert engine.prove(silent) == 0
    for group in ("va", "vb"):
        programs.run(["vgremove", "-y", "-f", group], timeout_s=60)

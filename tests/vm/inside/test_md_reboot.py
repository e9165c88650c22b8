"""A backup whose leg is split when the power is cut. The host resets the guest in between.

At boot udev hands every member to mdadm. A parted one that comes before its array's others is
thrown out of it as not fresh; one that comes after them is put beside the array as a spare, and
copied to from the first write on.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tests.vm.inside.md_backup import command, configured, killed_behind, load, require_sound
from tests.vm.inside.md_lab import (
    KIB,
    A,
    B,
    run,
    sysfs_of,
    until,
    wait_until_level,
    write_durably,
)

PLACE = Path("/root/md-reboot")  # on the root disk, which the power cut leaves as it was synced
DATA = Path("/root/md-reboot/data")
DEVICE = "/dev/md0"


def split_and_left(leg: str) -> None:
    """A backup that was killed when its plan was durable, its leg split."""
    run(
        *("mdadm", "--create", DEVICE, "--quiet", "--run", "--level=1", "--raid-devices=2"),
        *("--bitmap=internal", "--bitmap-chunk=64K", "--delay=1", A, B),
    )
    wait_until_level(DEVICE)
    run("mkfs.ext4", "-q", "-F", DEVICE)
    DATA.mkdir(parents=True)
    run("mount", DEVICE, str(DATA))
    for number in range(3):
        write_durably(DATA / f"f{number}", os.urandom(300 * KIB))
    table = {"driver": '"none"', "paths": f'["{DATA}"]'}
    path = configured(PLACE, DEVICE, table, mode="freeze", leg=leg)
    killed_behind("plan", path)
    write_durably(DATA / "f1", os.urandom(64 * KIB))
    assert command(path, "mirror", "status")["split_id"]
    run("sync")


def test_before_with_the_first_member_as_leg() -> None:
    split_and_left(A)


def test_before_with_the_last_member_as_leg() -> None:
    split_and_left(B)


def gone() -> None:
    """Leave the disks as they were found."""
    run("umount", str(DATA))
    run("mdadm", "--stop", DEVICE)
    run("mdadm", "--zero-superblock", A, B)
    run("rm", "-r", str(PLACE))


@pytest.fixture(autouse=True)
def modules() -> None:
    run("modprobe", "-a", "raid1", "loop")


@pytest.fixture
def path() -> Path:
    return PLACE / "splitmirror.toml"


def test_after_the_backup_goes_on(path: Path) -> None:
    assert (sysfs_of(DEVICE) / "degraded").read_text() == "1\n"
    run("mount", "-o", "ro,noload", DEVICE, str(DATA))  # nothing has been written to the array
    (recovered,) = command(path, "recover")["runs"]
    assert recovered["finished"], recovered
    require_sound(load(path), recovered["set_id"])
    assert command(path, "mirror", "status")["level"]
    gone()


def assembled_with_the_leg_last() -> None:
    """As after a boot in which its disk came last, and is taken back: which one does is udev's
    luck. (`--run`, for the array runs already.)"""
    run("mdadm", "--stop", DEVICE)
    run("mdadm", "--incremental", A)
    until(Path(DEVICE).exists)
    run("mdadm", "--incremental", "--run", B)


def test_after_the_array_was_written_to_the_backup_is_thrown_away(path: Path) -> None:
    assembled_with_the_leg_last()
    run("mount", DEVICE, str(DATA))
    write_durably(DATA / "f2", os.urandom(64 * KIB))
    wait_until_level(DEVICE)  # md has taken the leg back by itself
    (recovered,) = command(path, "recover")["runs"]
    assert not recovered["finished"], recovered
    assert "not what was split" in str(recovered["done"])
    assert command(path, "mirror", "status")["level"]
    made = command(path, "backup")
    assert made["complete"]
    gone()

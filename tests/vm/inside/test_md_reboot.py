"""Backups whose legs are split when the power is cut. The host resets the guest in between.

At boot udev hands every member to mdadm. A parted one that comes before its array's others is
thrown out of it as not fresh; one that comes after them is put beside the array as a spare, and
copied to from the first write on.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.vm.inside.md_backup import command, configured, killed_behind, load, require_sound
from tests.vm.inside.md_lab import (
    KIB,
    A,
    B,
    C,
    D,
    E,
    F,
    run,
    sysfs_of,
    until,
    wait_until_level,
    write_durably,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Files on an array of two disks, one of which is the leg; all else of it on the root disk,
    which the power cut leaves as it was synced."""

    device: str
    members: tuple[str, str]
    leg: str

    @property
    def place(self) -> Path:
        return Path("/root/md-reboot", Path(self.device).name)

    @property
    def data(self) -> Path:
        return self.place / "data"

    @property
    def config(self) -> Path:
        return self.place / "splitmirror.toml"

    def gone(self) -> None:
        """Leave the disks as they were found."""
        run("umount", str(self.data))
        run("mdadm", "--stop", self.device)
        run("mdadm", "--zero-superblock", *self.members)
        run("rm", "-r", str(self.place))


LEG_FIRST = Source(device="/dev/md0", members=(A, B), leg=A)
LEG_LAST = Source(device="/dev/md1", members=(C, D), leg=D)
WRITTEN_TO = Source(device="/dev/md2", members=(E, F), leg=F)
SOURCES = pytest.mark.parametrize(
    "source", [LEG_FIRST, LEG_LAST, WRITTEN_TO], ids=["leg first", "leg last", "written to"]
)
GO_ON = pytest.mark.parametrize("source", [LEG_FIRST, LEG_LAST], ids=["leg first", "leg last"])


@pytest.fixture(autouse=True)
def modules() -> None:
    run("modprobe", "-a", "raid1", "loop")


@SOURCES
def test_before_a_backup_is_killed_when_its_plan_is_durable(source: Source) -> None:
    run(
        *("mdadm", "--create", source.device, "--quiet", "--run", "--level=1"),
        *("--raid-devices=2", "--bitmap=internal", "--bitmap-chunk=64K", "--delay=1"),
        *("--size=40M", *source.members),
    )
    wait_until_level(source.device)
    run("mkfs.ext4", "-q", "-F", source.device)
    source.data.mkdir(parents=True)
    run("mount", source.device, str(source.data))
    for number in range(3):
        write_durably(source.data / f"f{number}", os.urandom(300 * KIB))
    table = {"driver": '"none"', "paths": f'["{source.data}"]'}
    path = configured(source.place, source.device, table, mode="freeze", leg=source.leg)
    killed_behind("plan", path)
    write_durably(source.data / "f1", os.urandom(64 * KIB))
    assert command(path, "mirror", "status")["split_id"]
    run("sync")


@GO_ON
def test_after_the_backup_goes_on_with_its_leg(source: Source) -> None:
    assert (sysfs_of(source.device) / "degraded").read_text() == "1\n"
    # nothing has been written to the array
    run("mount", "-o", "ro,noload", source.device, str(source.data))
    (recovered,) = command(source.config, "recover")["runs"]
    assert recovered["finished"], recovered
    require_sound(load(source.config), recovered["set_id"])
    assert command(source.config, "mirror", "status")["level"]
    source.gone()


def assembled_with_the_leg_last(source: Source) -> None:
    """As after a boot in which its disk came last, and is taken back: which one does is udev's
    luck. (`--run`, for the array runs already.)"""
    first, leg = source.members
    run("mdadm", "--stop", source.device)
    run("mdadm", "--incremental", first)
    until(Path(source.device).exists)
    run("mdadm", "--incremental", "--run", leg)


def test_after_the_array_was_written_to_the_backup_is_thrown_away() -> None:
    source = WRITTEN_TO
    assembled_with_the_leg_last(source)
    run("mount", source.device, str(source.data))
    write_durably(source.data / "f2", os.urandom(64 * KIB))
    wait_until_level(source.device)  # md has taken the leg back by itself
    (recovered,) = command(source.config, "recover")["runs"]
    assert not recovered["finished"], recovered
    assert "not what was split" in str(recovered["done"])
    assert command(source.config, "mirror", "status")["level"]
    made = command(source.config, "backup")
    assert made["complete"]
    source.gone()

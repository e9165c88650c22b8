"""Whole backups of PostgreSQL on LVM, on md and over both, in one guest, one lab after another."""

from __future__ import annotations

from tests.vm.conftest import Inside
from tests.vm.guest import GIB, Disk, Guest

TAKES_S = 300
DISKS = (Disk(name="work", size=6 * GIB),)


def test_on_lvm_on_md_and_over_both(guest: Guest, inside: Inside) -> None:
    # A place for the labs that no backup freezes.
    disk = DISKS[0].path
    guest.shell(f"modprobe loop; mkfs.ext4 -q {disk}; mkdir -p /work; mount {disk} /work")
    inside("test_whole_lvm.py", "test_whole_md.py", "test_whole_group.py")

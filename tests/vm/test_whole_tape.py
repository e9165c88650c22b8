"""A whole backup of PostgreSQL on LVM onto tape, and back."""

from __future__ import annotations

from tests.vm.conftest import Inside
from tests.vm.guest import GIB, Disk, Guest

TAKES_S = 190
DISKS = (Disk(name="work", size=6 * GIB),)


def test_postgresql_over_cartridges_in_two_drives(guest: Guest, inside: Inside) -> None:
    guest.shell(
        f"modprobe loop; mkfs.ext4 -q {DISKS[0].path}; mkdir -p /work; "
        f"mount {DISKS[0].path} /work; chmod 755 /work"
    )
    inside("test_whole_tape.py")

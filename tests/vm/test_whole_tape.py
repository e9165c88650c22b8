"""A whole backup of PostgreSQL on LVM onto tape, and back."""

from __future__ import annotations

import pytest
from tests.vm.conftest import Inside
from tests.vm.guest import GIB, Disk, Guest

pytestmark = pytest.mark.timeout(1500)

DISKS = (Disk(name="work", size=6 * GIB),)
_LONGEST_S = 1400  # an idle machine needs three minutes, a busy one many


def test_postgresql_over_cartridges_in_two_drives(guest: Guest, inside: Inside) -> None:
    guest.shell(
        f"modprobe loop; mkfs.ext4 -q {DISKS[0].path}; mkdir -p /work; "
        f"mount {DISKS[0].path} /work; chmod 755 /work"
    )
    inside("test_whole_tape.py", timeout_s=_LONGEST_S)

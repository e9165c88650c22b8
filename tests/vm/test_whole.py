"""Whole backups of PostgreSQL on LVM, on md and over both, in one guest, one lab after another."""

from __future__ import annotations

import pytest
from tests.vm.conftest import Inside
from tests.vm.guest import GIB, Disk, Guest

pytestmark = pytest.mark.timeout(1500)
_LONGEST_S = 1400  # an idle machine needs two minutes for each, a busy one many

DISKS = (Disk(name="work", size=6 * GIB),)


@pytest.fixture(autouse=True)
def work(guest: Guest) -> None:
    """A place for the labs that no backup freezes."""
    guest.shell(
        f"mountpoint -q /work || {{ modprobe loop; mkfs.ext4 -q {DISKS[0].path}; mkdir -p /work; "
        f"mount {DISKS[0].path} /work; }}; rm -rf /work/*; chmod 755 /work"
    )


def test_on_lvm(inside: Inside) -> None:
    inside("test_whole_lvm.py", timeout_s=_LONGEST_S)


def test_on_md(inside: Inside) -> None:
    inside("test_whole_md.py", timeout_s=_LONGEST_S)


def test_over_lvm_and_md(inside: Inside) -> None:
    inside("test_whole_group.py", timeout_s=_LONGEST_S)

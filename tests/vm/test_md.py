"""The md engine on arrays of Debian's kernel, whole backups of PostgreSQL on md and on md with LVM;
one of the scenarios cuts the power."""

from __future__ import annotations

import pytest
from tests.vm.conftest import WORK, Inside
from tests.vm.guest import MIB, Disk, Guest

REBOOT = "test_md_reboot.py"
TAKES_S = 270
PROCESSORS = 1
DISKS = (
    *(Disk(name=name, size=64 * MIB) for name in "abcd"),
    *(Disk(name=name, size=320 * MIB) for name in "ef"),
    WORK,
)


@pytest.mark.usefixtures("work")
def test_the_contract_arrays_volumes_on_them_backups_and_a_power_cut_while_a_leg_is_split(
    guest: Guest, inside: Inside
) -> None:
    engine = ("test_contract_md.py", "test_md.py", "test_md_volumes.py", "test_md_backup.py")
    whole = ("test_whole_md.py", "test_whole_group.py")
    inside(*engine, *whole, f"{REBOOT}::test_before_a_backup_is_killed_when_its_plan_is_durable")
    guest.reset()
    inside(
        f"{REBOOT}::test_after_the_backup_goes_on_with_its_leg",
        f"{REBOOT}::test_after_the_array_was_written_to_the_backup_is_thrown_away",
    )

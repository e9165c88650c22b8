"""LVM's mirrors: the contract, what may happen to them, and whole backups of PostgreSQL."""

import pytest
from tests.vm.conftest import WORK, Inside
from tests.vm.guest import MIB, Disk, Guest

TAKES_S = 340
PROCESSORS = 1
DISKS = (*(Disk(name=name, size=128 * MIB) for name in "abcde"), WORK)


@pytest.mark.usefixtures("work")
def test_the_contract_what_may_happen_whole_backups_and_a_reboot_with_legs_split(
    guest: Guest, inside: Inside
) -> None:
    files = ("test_contract_lvm.py", "test_lvm.py", "test_lvm_backup.py", "test_whole_lvm.py")
    inside(*files, "test_lvm_reboot.py::test_split_under_a_steady_load")
    guest.reset()
    inside("test_lvm_reboot.py::test_after_the_reboot")

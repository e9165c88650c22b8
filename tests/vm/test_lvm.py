"""LVM's mirrors: the contract, and what may happen to them."""

from tests.vm.conftest import Inside
from tests.vm.guest import MIB, Disk, Guest

TAKES_S = 190
PROCESSORS = 1
DISKS = tuple(Disk(name=name, size=128 * MIB) for name in "abcde")


def test_the_contract_what_may_happen_a_backup_and_a_reboot_with_legs_split(
    guest: Guest, inside: Inside
) -> None:
    files = ("test_contract_lvm.py", "test_lvm.py", "test_lvm_backup.py")
    inside(*files, "test_lvm_reboot.py::test_split_under_a_steady_load")
    guest.reset()
    inside("test_lvm_reboot.py::test_after_the_reboot")

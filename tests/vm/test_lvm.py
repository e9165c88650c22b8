"""LVM's mirrors: the contract, and what may happen to them."""

from tests.vm.conftest import Inside
from tests.vm.guest import MIB, Disk, Guest

DISKS = tuple(Disk(name=name, size=128 * MIB) for name in "abcde")


def test_the_contract_of_a_mirror(inside: Inside) -> None:
    inside("test_contract_lvm.py")


def test_what_may_happen_to_it(inside: Inside) -> None:
    inside("test_lvm.py")


def test_a_backup(inside: Inside) -> None:
    inside("test_lvm_backup.py")


def test_a_reboot_with_legs_split(guest: Guest, inside: Inside) -> None:
    inside("test_lvm_reboot.py::test_split_under_a_steady_load")
    guest.reset()
    inside("test_lvm_reboot.py::test_after_the_reboot")

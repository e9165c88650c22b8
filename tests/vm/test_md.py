"""The md engine on arrays of Debian's kernel; two of its scenarios cut the power."""

from __future__ import annotations

from tests.vm.conftest import Inside
from tests.vm.guest import MIB, Disk, Guest

DISKS = (
    *(Disk(name=name, size=64 * MIB) for name in "abcd"),
    *(Disk(name=name, size=320 * MIB) for name in "ef"),
)


def test_contract(inside: Inside) -> None:
    inside("test_contract_md.py")


def test_arrays_and_the_volumes_on_them(inside: Inside) -> None:
    inside("test_md.py", "test_md_volumes.py")


def test_backups(inside: Inside) -> None:
    inside("test_md_backup.py")


def test_a_backup_goes_on_with_its_leg_after_the_power_was_cut(
    guest: Guest, inside: Inside
) -> None:
    for leg in ("first", "last"):
        inside(f"test_md_reboot.py::test_before_with_the_{leg}_member_as_leg")
        guest.reset()
        inside("test_md_reboot.py::test_after_the_backup_goes_on")


def test_a_leg_that_was_taken_back_after_the_power_was_cut_is_not_read(
    guest: Guest, inside: Inside
) -> None:
    inside("test_md_reboot.py::test_before_with_the_last_member_as_leg")
    guest.reset()
    inside("test_md_reboot.py::test_after_the_array_was_written_to_the_backup_is_thrown_away")

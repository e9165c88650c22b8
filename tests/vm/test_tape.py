"""Tape in the guest: the kernel's st, ch and sg drivers on a virtual library."""

from __future__ import annotations

from tests.vm.conftest import Inside
from tests.vm.guest import Guest

TAKES_S = 140
PROCESSORS = 1


def test_the_virtual_library_is_one_to_the_kernel_and_to_stock_tools(inside: Inside) -> None:
    inside("test_tape_library.py")


def test_the_changer_by_the_kernels_drivers(inside: Inside) -> None:
    inside("test_tape_changer.py")


def test_volumes_are_brought_into_drives(inside: Inside) -> None:
    inside("test_tape_bringing.py")


def test_drives_pass_the_contract_faults_included(inside: Inside) -> None:
    inside("test_contract_tape.py")


def test_drives_beyond_the_contract_and_stock_tools_on_their_tapes(inside: Inside) -> None:
    inside("test_tape_drive.py")


def test_a_set_is_whole_whatever_fails_behind_it(inside: Inside) -> None:
    inside("test_tape_volume.py")


def test_a_power_cut_while_a_part_is_written(guest: Guest, inside: Inside) -> None:
    inside("test_tape_power.py::test_before")
    guest.reset()
    inside("test_tape_power.py::test_after")

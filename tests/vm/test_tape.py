"""Tape in the guest: the kernel's st, ch and sg drivers on a virtual library."""

from __future__ import annotations

from tests.vm.conftest import Inside
from tests.vm.guest import Guest

TAKES_S = 110
PROCESSORS = 1


FILES = (
    "test_tape_library.py",
    "test_tape_changer.py",
    "test_tape_bringing.py",
    "test_contract_tape.py",
    "test_tape_drive.py",
    "test_tape_volume.py",
)


def test_the_library_its_changer_its_drives_and_what_is_on_their_tapes(inside: Inside) -> None:
    inside(*FILES)


def test_a_power_cut_while_a_part_is_written(guest: Guest, inside: Inside) -> None:
    inside("test_tape_power.py::test_before")
    guest.reset()
    inside("test_tape_power.py::test_after")

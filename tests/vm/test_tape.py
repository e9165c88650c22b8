"""Tape in the guest: the kernel's st, ch and sg drivers on a virtual library, and a whole backup of
PostgreSQL on LVM onto it."""

from __future__ import annotations

import pytest
from tests.vm.conftest import WORK, Inside
from tests.vm.guest import Guest

TAKES_S = 170
PROCESSORS = 1
DISKS = (WORK,)


FILES = (
    "test_tape_library.py",
    "test_tape_changer.py",
    "test_tape_bringing.py",
    "test_contract_tape.py",
    "test_tape_drive.py",
    "test_tape_volume.py",
    "test_whole_tape.py",
)


@pytest.mark.usefixtures("work")
def test_the_library_its_drives_what_is_on_their_tapes_and_postgresql_onto_them_and_back(
    inside: Inside,
) -> None:
    inside(*FILES)


def test_a_power_cut_while_a_part_is_written(guest: Guest, inside: Inside) -> None:
    inside("test_tape_power.py::test_before")
    guest.reset()
    inside("test_tape_power.py::test_after")

"""Tape in the guest: the kernel's st, ch and sg drivers on a virtual library, a whole backup of
PostgreSQL on LVM onto it, and a cut of power while a part is written."""

from __future__ import annotations

import pytest
from tests.vm.conftest import WORK, Inside
from tests.vm.guest import Guest

TAKES_S = 150
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
    "test_tape_power.py::test_before",
)


@pytest.mark.usefixtures("work")
def test_the_library_its_drives_whole_backups_onto_their_tapes_and_a_power_cut_in_a_part(
    guest: Guest, inside: Inside
) -> None:
    inside(*FILES)
    guest.reset()
    inside("test_tape_power.py::test_after")

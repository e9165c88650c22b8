"""Whole backups of PostgreSQL on LVM onto tape, and back."""

from __future__ import annotations

import pytest
from tests.vm.conftest import WORK, Inside

TAKES_S = 80
PROCESSORS = 1
DISKS = (WORK,)


@pytest.mark.usefixtures("work")
def test_postgresql_over_cartridges_in_two_drives(inside: Inside) -> None:
    inside("test_whole_tape.py")

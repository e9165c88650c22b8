"""Whole backups of PostgreSQL on LVM."""

from __future__ import annotations

import pytest
from tests.vm.conftest import WORK, Inside

TAKES_S = 175
PROCESSORS = 1
DISKS = (WORK,)


@pytest.mark.usefixtures("work")
def test_whole_backups_on_lvm(inside: Inside) -> None:
    inside("test_whole_lvm.py")

"""Whole backups of PostgreSQL on md, and on LVM and md at once."""

from __future__ import annotations

import pytest
from tests.vm.conftest import WORK, Inside

TAKES_S = 130
PROCESSORS = 1
DISKS = (WORK,)


@pytest.mark.usefixtures("work")
def test_whole_backups_on_md_and_on_md_with_lvm(inside: Inside) -> None:
    inside("test_whole_md.py", "test_whole_group.py")

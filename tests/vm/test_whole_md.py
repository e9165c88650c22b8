"""Whole backups of PostgreSQL on md."""

from __future__ import annotations

import pytest
from tests.vm.conftest import WORK, Inside

TAKES_S = 80
PROCESSORS = 1
DISKS = (WORK,)


@pytest.mark.usefixtures("work")
def test_whole_backups_on_md(inside: Inside) -> None:
    inside("test_whole_md.py")

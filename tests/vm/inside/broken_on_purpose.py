"""Scenarios that end in every way but well: test_guest.py looks at how the host tells of them."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest


def test_that_passes(record_property: Callable[[str, object], None]) -> None:
    record_property("pause_ms", 12)


def test_that_fails() -> None:
    told = "the guest's own words"
    assert told == "others"


@pytest.fixture
def refusing() -> None:
    raise OSError("no such fixture today")


def test_that_is_not_set_up(refusing: None) -> None:
    pass


def test_that_is_skipped() -> None:
    pytest.skip("not in this guest")


def test_that_takes_the_kernel_down() -> None:
    Path("/proc/sysrq-trigger").write_text("c")
    time.sleep(60)

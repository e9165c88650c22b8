"""Host tests over scenarios that are broken on purpose. Run by test_guest.py alone: their failing
is what it looks at."""

from __future__ import annotations

from tests.vm.conftest import Inside

FILE = "broken_on_purpose.py"


def test_failures(inside: Inside) -> None:
    names = (
        "test_that_passes",
        "test_that_fails",
        "test_that_is_not_set_up",
        "test_that_is_skipped",
    )
    inside(*(f"{FILE}::{name}" for name in names))


def test_a_file_that_is_not_there(inside: Inside) -> None:
    inside("none.py")


def test_a_dead_kernel(inside: Inside) -> None:
    inside(f"{FILE}::test_that_takes_the_kernel_down")

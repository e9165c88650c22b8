"""The guest tier: one guest a module, its disks declared in the module as `DISKS`; `inside` runs
files of inside/ in it. docs/testing.md has an example."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.vm import image as images
from tests.vm.guest import Guest
from tests.vm.image import Image
from tests.vm.scenarios import Ran, Scenarios
from tests.vm.tier import TIER, Tier, account, plan

collect_ignore = ["inside"]  # the guest's

SKIP_VARIABLE = "SKIP_VM"
Inside = Callable[..., Ran]

_HERE = Path(__file__).parent
_TEST_TIMEOUT_S = 900  # pytest's own limit is for tests that boot and build nothing


def pytest_configure(config: pytest.Config) -> None:
    config.stash[TIER] = Tier()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    ours = [item for item in items if item.path.is_relative_to(_HERE)]
    reason = _why_not() if ours else ""
    for item in ours:
        item.add_marker(pytest.mark.vm)
        if item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(_TEST_TIMEOUT_S))
        if reason:
            item.add_marker(pytest.mark.skip(reason=reason))


def _why_not() -> str:
    if os.environ.get(SKIP_VARIABLE, "0") not in ("", "0"):
        return f"{SKIP_VARIABLE} is set"
    lacks = images.missing()
    return f"the guest tier needs {', '.join(lacks)}" if lacks else ""


def pytest_report_collectionfinish(items: list[pytest.Item]) -> str:
    return plan(items)


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    tier = config.stash[TIER]
    if tier.boots_s:
        terminalreporter.section("guest tier")
        for line in account(tier):
            terminalreporter.line(line)


@pytest.fixture(scope="session")
def image(pytestconfig: pytest.Config) -> Image:
    """The guest's image; built, with its steps on the terminal, when it is not cached."""
    terminal = pytestconfig.pluginmanager.get_plugin("terminalreporter")
    started = time.monotonic()
    found = images.cached()
    if found is None:
        found = images.need(terminal.write_line if terminal else lambda line: None)
        pytestconfig.stash[TIER].image_s = time.monotonic() - started
    return found


@pytest.fixture(scope="module")
def guest(image: Image, request: pytest.FixtureRequest) -> Iterator[Guest]:
    """A guest with the module's `DISKS`, for all tests of the module."""
    booted = Guest(image, getattr(request.module, "DISKS", ()))
    try:
        with booted:
            yield booted
    finally:
        request.config.stash[TIER].boots_s += booted.boots_s


@pytest.fixture
def inside(guest: Guest, request: pytest.FixtureRequest) -> Inside:
    """Runs files of inside/ in the module's guest: see Scenarios.run."""
    assert isinstance(request.node, pytest.Item)
    select = request.config.getoption("--inside")
    return Scenarios(guest, request.node, select, request.config.stash[TIER].ran).run

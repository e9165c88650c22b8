"""The guest tier: one guest a module, its disks declared in the module as `DISKS`; `inside` runs
files of inside/ in it. The module that takes longest (`TAKES_S`) comes first, so that processes
side by side end together. docs/testing.md has an example."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from tests.vm import image as images
from tests.vm.guest import GIB, Disk, Guest, Shape
from tests.vm.image import Image
from tests.vm.scenarios import Ran, Scenarios
from tests.vm.tier import TIER, why_not

collect_ignore = ["inside"]  # the guest's

WORK = Disk(name="work", size=6 * GIB)
Inside = Callable[..., Ran]

_HERE = Path(__file__).parent
# pytest's own limit is for tests that boot and build nothing. An idle machine needs five minutes.
_TEST_TIMEOUT_S = 2400


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    ours = [item for item in items if item.path.is_relative_to(_HERE)]
    ours.sort(key=_takes_s, reverse=True)
    order = _in_turns([item.path for item in ours])
    ours.sort(key=lambda item: order.index(item.path))
    items[:] = ours + [item for item in items if not item.path.is_relative_to(_HERE)]
    reason = why_not() if ours else ""
    for item in ours:
        item.add_marker(pytest.mark.vm)
        if item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(_TEST_TIMEOUT_S))
        if reason:
            item.add_marker(pytest.mark.skip(reason=reason))


def _in_turns(paths: Sequence[Path]) -> list[Path]:
    """The files for processes side by side: each of them is given two at first, so whoever has the
    longest of the first gets the shortest of the second, and so on."""
    files, count = list(dict.fromkeys(paths)), int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    rounds = [files[at : at + count] for at in range(0, len(files), count)]
    return [file for number, row in enumerate(rounds) for file in row[:: -1 if number % 2 else 1]]


def _takes_s(item: pytest.Item) -> float:
    assert isinstance(item, pytest.Function)
    return float(getattr(item.module, "TAKES_S", 0))


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
    """A guest with the module's `DISKS` and `PROCESSORS`, for all tests of the module."""
    module = request.module
    shape = Shape(processors=module.PROCESSORS) if hasattr(module, "PROCESSORS") else Shape()
    booted = Guest(image, getattr(module, "DISKS", ()), shape)
    try:
        with booted:
            yield booted
    finally:
        request.config.stash[TIER].boots_s += booted.boots_s


@pytest.fixture
def work(guest: Guest) -> None:
    """The guest's disk WORK at /work: for labs, which no backup may freeze as a whole."""
    disk = WORK.path
    guest.shell(f"modprobe loop; mkfs.ext4 -q {disk}; mkdir -p -m 755 /work; mount {disk} /work")


@pytest.fixture
def inside(guest: Guest, pytestconfig: pytest.Config, subtests: pytest.Subtests) -> Inside:
    """Runs files of inside/ in the module's guest: see Scenarios.run."""
    select = pytestconfig.getoption("--inside")
    return Scenarios(guest, pytestconfig, subtests, select, pytestconfig.stash[TIER].ran).run

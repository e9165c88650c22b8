"""What tests of several folders share: whether this machine can run the real tier, and how many
processes it can run tests in."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
from pathlib import Path

import pytest
from hypothesis import settings

from splitmirror.system import namespaces

pytest_plugins = ["tests.vm.tier"]

_TESTS = 4 << 30  # bytes that one process's tests may need: a guest's memory and its emulator's
PROGRAMS = ("qemu-storage-daemon", "nbdfuse", "mke2fs", "mkfs.xfs")


def missing() -> list[str]:
    """What the real tier needs and this machine has not."""
    lacks = [] if os.geteuid() == 0 else ["root"]
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    lacks += [program for program in PROGRAMS if shutil.which(program, path=path) is None]
    if not os.path.exists("/dev/loop-control"):
        lacks.append("/dev/loop-control")
    if not os.path.exists("/dev/fuse"):
        lacks.append("/dev/fuse")
    return lacks


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--inside", metavar="EXPRESSION", help="of the guests' scenarios, those named like this"
    )


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """One process for each processor, while there is memory for a guest in each (proc(5))."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    (available,) = (int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable"))
    return max(1, min(len(os.sched_getaffinity(0)), available // _TESTS))


def pytest_configure(config: pytest.Config) -> None:
    """Mounts of this run's own, Ctrl-C as in a terminal, and the examples that are tried."""
    # What tests mount goes with the last of their processes, when they are killed too: a dead FUSE
    # mount left below a loop device makes every mkfs.btrfs on the host fail. xdist's processes
    # inherit it. (Without the privilege there is nothing that could be mounted.)
    if not hasattr(config, "workerinput"):
        with contextlib.suppress(PermissionError):
            namespaces.unshare(namespaces.CLONE_NEWNS)
            namespaces.make_mounts_slaves()
    # Ctrl-C is part of what is tested; a job in the background is started with it ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # Where many changes are judged, the same examples each time; elsewhere always new ones.
    settings.register_profile("ci", derandomize=True)
    if os.environ.get("CI"):
        settings.load_profile("ci")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the slow tiers where the machine cannot run them, and say what it lacks."""
    lacks = missing()
    if not lacks:
        return
    skip = pytest.mark.skip(reason=f"the real tier needs {', '.join(lacks)}")
    for item in items:
        if item.get_closest_marker("real") or item.get_closest_marker("crash"):
            item.add_marker(skip)

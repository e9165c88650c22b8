"""Who has a file or a block device open: processes, and loop devices over it. Source: proc(5)."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

from splitmirror.system import loop

# An autoclear loop device goes a moment after its mount is dissolved.
_LETTING_GO_S = 2.0
_POLL_S = 0.01


def openers(path: Path, *, but: int | None = None, patient: bool = False) -> list[str]:
    """The loop devices over a file or device and the processes that have it open, other than
    `but`. `patient`: waits a moment for those that are just going."""
    until = time.monotonic() + (_LETTING_GO_S if patient else 0.0)
    while True:
        processes = [user for user in users(path) if not user.startswith(f"process {but} ")]
        found = loop.find(path) + processes
        if not found or time.monotonic() > until:
            return found
        time.sleep(_POLL_S)


def users(path: str | Path) -> list[str]:
    """The processes that have this file or device open, as "process 123 (dd)"."""
    wanted = os.path.realpath(path)
    found = []
    for entry in Path("/proc").iterdir():
        # A process may end while it is looked at.
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and _has_open(entry, wanted):
                name = (entry / "comm").read_text().strip()
                found.append(f"process {entry.name} ({name})")
    return found


def _has_open(entry: Path, path: str) -> bool:
    return any(os.readlink(fd) == path for fd in (entry / "fd").iterdir())

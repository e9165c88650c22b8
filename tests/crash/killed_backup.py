"""A backup that is killed at one of its journal's records: CONFIG RECORD before|after [shelf].

A kill -9 from inside, at a known point: right before the record is made, or right behind it. RECORD
is its number, from 1, or a kind, of which it is the first.
With `shelf` it writes to small tapes on a shelf (shelf_config).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from itertools import count
from pathlib import Path
from typing import Any

from tests.crash import shelf_config

from splitmirror import config
from splitmirror.backup import backup
from splitmirror.journal import Journal

_PROJECT = Path(__file__).parents[2]


def was_killed(path: Path, record: str | int, when: str, *more: str) -> bool:
    """Run it in a process of its own; False when it ended before it came so far."""
    argv = [sys.executable, "-m", "tests.crash.killed_backup", str(path), str(record), when, *more]
    done = subprocess.run(
        argv, cwd=_PROJECT, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode != 0


def main() -> None:
    path, wanted, when = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    record, numbers = Journal.record, count(1)  # several threads record

    def deadly(self: Journal, kind: str, **facts: Any) -> None:
        now = wanted in (kind, str(next(numbers)))
        if now and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        record(self, kind, **facts)
        if now:
            os.kill(os.getpid(), signal.SIGKILL)

    Journal.record = deadly
    backup(shelf_config.load(path) if "shelf" in sys.argv else config.load(path))


if __name__ == "__main__":
    main()

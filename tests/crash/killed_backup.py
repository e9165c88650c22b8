"""A backup that is killed at one of its journal's records: CONFIG RECORD before|after [shelf].

A kill -9 from inside, at a known point: right before the record is made, or right behind it. RECORD
is its number, from 1, or a kind, of which it is the first.
With `shelf` it writes to small tapes on a shelf (shelf_config).
"""

from __future__ import annotations

import os
import signal
import sys
from itertools import count
from pathlib import Path
from typing import Any

import shelf_config

from splitmirror import config
from splitmirror.backup import backup
from splitmirror.journal import Journal


def main() -> None:
    path, wanted, when = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    record, numbers = Journal.record, count(1)  # several threads record

    def deadly(journal: Journal, kind: str, **facts: Any) -> None:
        now = wanted in (kind, str(next(numbers)))
        if now and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        record(journal, kind, **facts)
        if now:
            os.kill(os.getpid(), signal.SIGKILL)

    Journal.record = deadly  # type: ignore[method-assign]
    backup(shelf_config.load(path) if "shelf" in sys.argv else config.load(path))


if __name__ == "__main__":
    main()

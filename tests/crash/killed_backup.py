"""A backup that is killed at one of its journal's records: CONFIG NUMBER before|after [shelf].

A kill -9 from inside, at a known point: right before the record is made, or right behind it.
With `shelf` it writes to small tapes on a shelf (shelf_config).
"""

from __future__ import annotations

import os
import signal
import sys
from itertools import count
from pathlib import Path
from typing import Any

from tests.crash import shelf_config

from splitmirror import config
from splitmirror.backup import backup
from splitmirror.journal import Journal


def main() -> None:
    path, wanted, when = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    record, numbers = Journal.record, count(1)  # several threads record

    def deadly(self: Journal, kind: str, **facts: Any) -> None:
        now = next(numbers) == wanted
        if now and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        record(self, kind, **facts)
        if now:
            os.kill(os.getpid(), signal.SIGKILL)

    Journal.record = deadly
    backup(shelf_config.load(path) if "shelf" in sys.argv else config.load(path))


if __name__ == "__main__":
    main()

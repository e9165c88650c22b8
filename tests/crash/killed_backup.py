"""A backup that is killed at one of its journal's records: CONFIG NUMBER before|after.

A kill -9 from inside, at a known point: right before the record is made, or right behind it.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

from splitmirror import config
from splitmirror.backup import backup
from splitmirror.journal import Journal


def main() -> None:
    path, wanted, when = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    record, made = Journal.record, 0

    def deadly(journal: Journal, kind: str, **facts: Any) -> None:
        nonlocal made
        made += 1
        if made == wanted and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        record(journal, kind, **facts)
        if made == wanted:
            os.kill(os.getpid(), signal.SIGKILL)

    Journal.record = deadly  # type: ignore[method-assign]
    backup(config.load(path))


if __name__ == "__main__":
    main()

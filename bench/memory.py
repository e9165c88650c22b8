"""The peak of the memory that a command and all processes below it have, as seen from outside.

Pages that several processes share count once: each has its share of them (Pss in
/proc/PID/smaps_rollup, proc(5)). To look takes a process a moment, so this is for runs that are not
timed.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

_LOOK_S = 0.02


class PeakMemory:
    """Watches from `started` on until the `with` is left. `peak`: bytes."""

    def __init__(self) -> None:
        self.peak = 0
        self._ended = threading.Event()
        self._pid = 0
        self._thread = threading.Thread(target=self._watch)

    def started(self, pid: int) -> None:
        """The command runs now, as this process."""
        self._pid = pid
        self._thread.start()

    def __enter__(self) -> PeakMemory:
        return self

    def __exit__(self, *exc: object) -> None:
        self._ended.set()
        if self._pid:
            self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(_LOOK_S):
            self.peak = max(self.peak, sum(map(_share, descendants(self._pid))))


def descendants(pid: int) -> Iterator[int]:
    """A process and all below it, as they are right now."""
    yield pid
    with contextlib.suppress(OSError):
        for thread in list(Path(f"/proc/{pid}/task").iterdir()):
            with contextlib.suppress(OSError):
                for child in (thread / "children").read_text().split():
                    yield from descendants(int(child))


def _share(pid: int) -> int:
    """Bytes; 0 of a process that has ended."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0

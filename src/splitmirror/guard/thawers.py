"""Thawing several filesystems, each on a thread of its own.

A thaw can wait: for a freeze of the same filesystem that is still writing back. It must not hold up
the thaw of another one, nor what else there is to do. The threads are made beforehand.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Sequence

from splitmirror.errors import SplitmirrorError
from splitmirror.guard.record import Thawed
from splitmirror.system import filesystems


class Thawers:
    """A waiting thread for each (mount point, descriptor). Used by one thread."""

    def __init__(self, mounts: Sequence[tuple[str, int]]) -> None:
        self._mountpoints = [path for path, _ in mounts]
        self._times = [0] * len(mounts)
        self._problems = [""] * len(mounts)
        self._busy: set[int] = set()
        self._refused: set[int] = set()  # not frozen, or not to be thawed
        self._orders = [queue.SimpleQueue[bool]() for _ in mounts]
        self._outcomes = queue.SimpleQueue[tuple[int, bool, str]]()
        for number, (_, fd) in enumerate(mounts):
            threading.Thread(target=self._work, args=(number, fd), daemon=True).start()

    def close(self) -> None:
        """End the threads; one that is in a thaw ends after it."""
        for order in self._orders:
            order.put(False)

    def thaw(self, wait_s: float) -> None:
        """One thaw of each filesystem; returns when all have answered, or `wait_s` is over."""
        self._begin(range(len(self._orders)))
        until = time.monotonic() + wait_s
        while self._busy and (left := until - time.monotonic()) > 0:
            with contextlib.suppress(queue.Empty):
                self._note(*self._outcomes.get(timeout=left))

    def thaw_for_good(self) -> None:
        """Thaw until each filesystem says that it is not frozen. Only when nothing can freeze them
        any more: once the holder is dead."""
        while self._busy:  # begun before that, so their answers prove nothing
            self._note(*self._outcomes.get())
        self._refused.clear()
        everything = set(range(len(self._orders)))
        while self._refused != everything:
            self._begin(everything - self._refused)
            self._note(*self._outcomes.get())

    def results(self) -> tuple[Thawed, ...]:
        """What has become of each filesystem so far."""
        told = zip(self._mountpoints, self._times, self._problems, strict=True)
        return tuple(Thawed(mountpoint=m, times=t, problem=p) for m, t, p in told)

    def _begin(self, numbers: Sequence[int] | set[int]) -> None:
        for number in numbers:
            if number not in self._busy:
                self._busy.add(number)
                self._orders[number].put(True)

    def _work(self, number: int, fd: int) -> None:
        while self._orders[number].get():
            try:
                self._outcomes.put((number, filesystems.thaw(fd), ""))
            except SplitmirrorError as error:
                self._outcomes.put((number, False, str(error)))

    def _note(self, number: int, thawed: bool, problem: str) -> None:
        self._busy.discard(number)
        self._times[number] += thawed
        self._problems[number] = problem
        if not thawed:
            self._refused.add(number)

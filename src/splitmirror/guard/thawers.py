"""Thawing several filesystems and resuming suspended devices, each on a thread of its own.

A thaw can wait: for a freeze of the same filesystem that is still writing back, or for the device
below it to be resumed. It must not hold up another one, nor what else there is to do. The threads
are made beforehand. To resume a device that was suspended counts as a thaw.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial

from splitmirror.errors import SplitmirrorError
from splitmirror.guard.record import Thawed
from splitmirror.system import devicemapper, filesystems


class Thawers:
    """A waiting thread for each (mount point, descriptor), and for each device number that is
    resumed through the `control` descriptor of device-mapper. Used by one thread."""

    def __init__(
        self,
        mounts: Sequence[tuple[str, int]],
        devices: Sequence[int] = (),
        control: int = -1,
    ) -> None:
        names = [f"device {os.major(devno)}:{os.minor(devno)}" for devno in devices]
        self._mountpoints = [path for path, _ in mounts] + names
        acts = [partial(filesystems.thaw, fd) for _, fd in mounts]
        acts += [partial(devicemapper.resume_suspended, control, devno) for devno in devices]
        self._times = [0] * len(acts)
        self._problems = [""] * len(acts)
        self._busy: set[int] = set()
        self._refused: set[int] = set()  # not frozen, or not to be thawed
        self._orders = [queue.SimpleQueue[bool]() for _ in acts]
        self._outcomes = queue.SimpleQueue[tuple[int, bool, str]]()
        for number, act in enumerate(acts):
            threading.Thread(target=self._work, args=(number, act), daemon=True).start()

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

    def _work(self, number: int, act: Callable[[], bool]) -> None:
        while self._orders[number].get():
            try:
                self._outcomes.put((number, act(), ""))
            except SplitmirrorError as error:
                self._outcomes.put((number, False, str(error)))

    def _note(self, number: int, thawed: bool, problem: str) -> None:
        self._busy.discard(number)
        self._times[number] += thawed
        self._problems[number] = problem
        if not thawed:
            self._refused.add(number)

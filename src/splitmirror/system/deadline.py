"""A time limit on a block of code, by setitimer(2) and SIGALRM.

It cuts short what the main thread waits for (a query, a socket, a lock), not an uninterruptible
wait in the kernel; for that there is the guard. What undoes something is never cut short.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from splitmirror.errors import DeadlineExceeded


class _Limit:
    """The limit of the block that is running; `undoing`: blocks of `uninterrupted` around us."""

    def __init__(self) -> None:
        self.undoing = 0
        self.late: DeadlineExceeded | None = None


_limit = _Limit()


@contextmanager
def deadline(limit_s: float | None, what: str) -> Iterator[None]:
    """Raise DeadlineExceeded in the block after `limit_s` seconds. None: no limit.

    Only the main thread can be cut short; elsewhere the block runs without a limit. Not nestable.
    """
    if limit_s is None or threading.current_thread() is not threading.main_thread():
        yield
        return

    def expired(number: int, frame: FrameType | None) -> None:
        error = DeadlineExceeded(
            f"{what} took longer than {limit_s:g} s",
            hint="Find out what it waited for (the message above, the database's log); the limits "
            "are in [backup] of the configuration.",
        )
        if not _limit.undoing:
            raise error
        _limit.late = error

    before = signal.signal(signal.SIGALRM, expired)
    signal.setitimer(signal.ITIMER_REAL, max(limit_s, 0.001))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        _limit.late = None


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Whatever undoes a hold goes in here: a deadline that comes meanwhile is raised when the block
    is left, and not at all if it is left by another error. Blocks may be nested; without a deadline
    it does nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _limit.undoing += 1
    try:
        yield
    finally:
        _limit.undoing -= 1
        late = _limit.late
        if late is not None and not _limit.undoing:
            _limit.late = None
            if sys.exception() is None:
                raise late

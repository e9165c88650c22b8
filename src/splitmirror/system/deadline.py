"""A time limit on a block of code, by setitimer(2) and SIGALRM.

It cuts short what the main thread waits for (a query, a socket, a lock), not an uninterruptible
wait in the kernel; for that there is the guard.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from splitmirror.errors import DeadlineExceeded


@contextmanager
def deadline(limit_s: float | None, what: str) -> Iterator[None]:
    """Raise DeadlineExceeded in the block after `limit_s` seconds. None: no limit.

    Only the main thread can be cut short; elsewhere the block runs without a limit. Not nestable.
    """
    if limit_s is None or threading.current_thread() is not threading.main_thread():
        yield
        return

    def expired(number: int, frame: FrameType | None) -> None:
        raise DeadlineExceeded(
            f"{what} took longer than {limit_s:g} s",
            hint="Find out what it waited for (the message above, the database's log); the limits "
            "are in [backup] of the configuration.",
        )

    before = signal.signal(signal.SIGALRM, expired)
    signal.setitimer(signal.ITIMER_REAL, max(limit_s, 0.001))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)

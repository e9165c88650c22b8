"""Trying again for a moment, where a process that was just forked off is in the way.

It has every descriptor of its parent until it has closed what is not its own (system.forked). So
it keeps a lock or a device for some milliseconds behind the parent's own close (fork(2), flock(2)).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, TypeVar

T = TypeVar("T")

_MOMENT_S: Final = 2.0  # a busy machine may take so long to let the child run
_PAUSE_S: Final = 0.01


def tried(act: Callable[[], T], errors: frozenset[int]) -> T:
    """What `act` gives, once it does not raise OSError with one of these numbers any more; after a
    moment its last error."""
    until = time.monotonic() + _MOMENT_S
    while True:
        try:
            return act()
        except OSError as error:
            if error.errno not in errors or time.monotonic() > until:
                raise
        time.sleep(_PAUSE_S)

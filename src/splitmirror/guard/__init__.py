"""The guard: a separate process that thaws and releases when the backup cannot.

A freeze outlives the process that made it (ioctl FIFREEZE), so only a living process can take it
back. The backup starts the guard before it quiesces anything. The guard holds a descriptor of every
filesystem that may be frozen, one of device-mapper where devices may be suspended, a pidfd of the
backup (the holder) and one end of a socket whose other end only the backup has. When that end is
closed, the holder exits, or a deadline passes, the guard thaws and resumes, ends the recorded
database sessions, kills the holder, waits for its death and thaws again: while the holder lives, a
FIFREEZE of its may still be going on, and a refused thaw proves nothing.

Nothing in the guard may wait for a frozen filesystem: it imports everything first (the standard
library and the rooms below it, no more), works from "/", writes no bytecode, has no output, is
locked in memory, and writes its record last.

    backup_end.py   `Guard`, what the backup holds
    watch.py        the guard's own process
    thawers.py      thawing and resuming several without one holding up another
    record.py       what the guard leaves behind when it has stepped in
    by_hand.py      the same steps for `splitmirror release` and `recover`
    wire.py         the messages between the two ends
"""

from splitmirror.guard.backup_end import Guard
from splitmirror.guard.by_hand import release_by_hand
from splitmirror.guard.record import Released, Thawed, read_record, wait_for_guards

__all__ = ["Guard", "Released", "Thawed", "read_record", "release_by_hand", "wait_for_guards"]

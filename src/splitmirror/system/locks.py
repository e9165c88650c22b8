"""Which file locks the kernel says a process holds: /proc/locks, proc(5).

Looking opens none of the files: a process loses its POSIX locks on a file as soon as it closes any
descriptor of it (fcntl(2)), so a look that opened them could end what it looks for.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class FileLock:
    """A POSIX lock on bytes `first` to `last` (None: to the end) of the file `ino`."""

    ino: int
    exclusive: bool
    first: int
    last: int | None

    def covers(self, byte: int) -> bool:
        """Whether that byte is locked."""
        return self.first <= byte and (self.last is None or byte <= self.last)


def held_by(pid: int) -> tuple[FileLock, ...]:
    """The POSIX locks of a process of our pid namespace. Waiting ones do not count."""
    return tuple(
        FileLock(
            ino=int(fields[5].rpartition(":")[2]),
            exclusive=fields[3] == "WRITE",
            first=int(fields[6]),
            last=None if fields[7] == "EOF" else int(fields[7]),
        )
        for line in Path("/proc/locks").read_text().splitlines()
        if (fields := line.split())[1] == "POSIX" and fields[4] == str(pid)
    )


def flocked_by(path: Path) -> int | None:
    """The process of our pid namespace that holds a lock by flock(2) on a file; None: there is
    none, or no such file."""
    if not path.exists():
        return None
    ino = path.stat().st_ino
    for line in Path("/proc/locks").read_text().splitlines():
        fields = line.split()
        if fields[1] == "FLOCK" and int(fields[5].rpartition(":")[2]) == ino:
            return int(fields[4])
    return None

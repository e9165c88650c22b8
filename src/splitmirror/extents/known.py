"""What an early table can still tell about directories and files that have not changed since.

Adding, removing or renaming a name sets a directory's times; changing a file's size, owner, mode or
attributes sets its change time (utimensat(2) cannot set that one back). What they do not show is
where the bytes lie: delayed allocation and defragmenting move them silently, see `check_maps`.
"""

from __future__ import annotations

import os
from typing import Final

from splitmirror.extents.table import FileTable
from splitmirror.model import Kind

# The kernel stamps inodes with a clock that ticks once a jiffy (10 ms at 100 Hz), so a change right
# after a look may leave the time that was seen. What changed so shortly before is looked at again.
SETTLED_NS: Final = 20_000_000

_FILE = ord(Kind.FILE)
_DIRECTORY = ord(Kind.DIRECTORY)
_ENTERED: Final = {
    _FILE: Kind.FILE,
    ord(Kind.HARDLINK): Kind.FILE,
    _DIRECTORY: Kind.DIRECTORY,
}


class Known:
    """An early table, with its files gathered by directory."""

    def __init__(self, table: FileTable) -> None:
        self.table = table
        self._settled_ns = table.looked_ns - SETTLED_NS
        table.find(b"")  # makes its index
        self._in_directory: dict[bytes, list[int]] = {}
        for at, name in enumerate(table.names):
            self._in_directory.setdefault(name.rpartition(b"/")[0], []).append(at)

    def children(
        self, name: bytes, status: os.stat_result
    ) -> list[tuple[bytes, Kind | None]] | None:
        """The names in a directory, as an unchanged one still has them, with the kind where it is
        FILE or DIRECTORY; None when it may have changed. What the early scan left out is not among
        them."""
        at = self.table.find(name)
        if at is None or not self._unchanged(at, _DIRECTORY, 0, status):
            return None
        begin, names, kind = len(name) + 1, self.table.names, self.table.kind
        return [
            (names[child][begin:], _ENTERED.get(kind(child)))
            for child in self._in_directory.get(name, ())
        ]

    def file(self, name: bytes, status: os.stat_result) -> int | None:
        """Where a regular file stands that has one name and has not changed; None when it may
        have."""
        if status.st_nlink != 1:
            return None
        at = self.table.find(name)
        if at is None or not self._unchanged(at, _FILE, status.st_size, status):
            return None
        return at

    def _unchanged(self, at: int, kind: int, size: int, status: os.stat_result) -> bool:
        changed_ns = status.st_ctime_ns
        now = (kind, size, status.st_mtime_ns, status.st_ino, status.st_nlink, changed_ns)
        return changed_ns < self._settled_ns and self.table.seen(at) == now

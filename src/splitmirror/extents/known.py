"""What an early table can still tell about directories and files that have not changed since.

Adding, removing or renaming a name sets a directory's times; changing a file's size, owner, mode or
attributes sets its change time (utimensat(2) cannot set that one back). What they do not show is
where the bytes lie: delayed allocation and defragmenting move them silently, see `check_maps`.

Nothing is copied: a scan's table is in an order in which a name is found by halving, and in which
all that is in a directory follows it.
"""

from __future__ import annotations

import os
from bisect import bisect_left
from collections.abc import Iterator, Set
from typing import Final, NamedTuple

from splitmirror.extents.names import scan_key
from splitmirror.extents.table import FileTable
from splitmirror.model import Kind

# The kernel stamps inodes with a clock that ticks once a jiffy (10 ms at 100 Hz), so a change right
# after a look may leave the time that was seen. What changed so shortly before is looked at again.
SETTLED_NS: Final = 20_000_000

_FILE = ord(Kind.FILE)
_DIRECTORY = ord(Kind.DIRECTORY)
_LINK = ord(Kind.HARDLINK)
_MAPPED = frozenset((_FILE, _LINK))


class _Rows(NamedTuple):
    """Where the rows of one tree are."""

    tree: int
    begin: int
    end: int


class Known:
    """A table as a scan gave it, by name. The table must not change any more.

    `mapped`: how many names of regular files it has. `stored_bytes`: those of the table. `linked`:
    for every file with several names in it, where they stand, the file itself first.
    """

    def __init__(self, table: FileTable) -> None:
        self.table = table
        self.stored_bytes = table.stored_bytes
        kinds = table.kinds()
        self.mapped = kinds.count(_FILE) + kinds.count(_LINK)
        self._settled_ns = table.looked_ns - SETTLED_NS
        self._rows = tuple(_tree_rows(table))
        self.linked = tuple(_linked(table, kinds))

    def find(self, name: bytes, tree: int | None = None) -> int | None:
        """Where a name stands, in any tree or in one."""
        for rows in self._rows:
            if tree is None or rows.tree == tree:
                at = self._first(scan_key(name), rows.begin, rows.end)
                if at < rows.end and self.table.names[at] == name:
                    return at
        return None

    def place(self, name: bytes, tree: int) -> int:
        """Where a name of a tree stands, or would stand."""
        end = 0
        for rows in self._rows:
            if rows.tree == tree:
                return self._first(scan_key(name), rows.begin, rows.end)
            if rows.tree < tree:
                end = rows.end
        return end

    def behind(self, at: int) -> int:
        """Where what is behind the directory at `at`, with all that is in it, begins."""
        end = next(rows.end for rows in self._rows if rows.begin <= at < rows.end)
        return self._first(scan_key(self.table.names[at]) + b"\1", at + 1, end)

    def inside(self, at: int) -> dict[bytes, int]:
        """The names in the directory at `at`, with where they stand. What the scan left out is not
        among them."""
        found, child, end = {}, at + 1, self.behind(at)
        begin = len(self.table.names[at]) + 1
        while child < end:
            found[self.table.names[child][begin:]] = child
            child = self.behind(child) if self.table.kind(child) == _DIRECTORY else child + 1
        return found

    def _first(self, key: bytes, begin: int, end: int) -> int:
        """The first row between the two whose name does not come before a key."""
        return self.table.names.first(key, begin, end)

    def with_inodes(self, inodes: Set[int]) -> Iterator[int]:
        """Where the regular files with these inodes stand, by any of their names. Goes through the
        whole table."""
        kind = self.table.kind
        for at, (ino, _) in enumerate(self.table.inodes()):
            if ino in inodes and kind(at) in _MAPPED:
                yield at

    # --- has it changed?

    def is_directory(self, at: int, status: os.stat_result) -> bool:
        """Whether the directory at `at` still has the names that were seen in it."""
        return self._unchanged(at, _DIRECTORY, 0, status)

    def is_file(self, at: int, status: os.stat_result) -> bool:
        """Whether what is at `at` is a regular file that has one name and has not changed."""
        return status.st_nlink == 1 and self._unchanged(at, _FILE, status.st_size, status)

    def _unchanged(self, at: int, kind: int, size: int, status: os.stat_result) -> bool:
        changed_ns = status.st_ctime_ns
        now = (kind, size, status.st_mtime_ns, status.st_ino, status.st_nlink, changed_ns)
        return changed_ns < self._settled_ns and self.table.seen(at) == now


def _tree_rows(table: FileTable) -> Iterator[_Rows]:
    begin = 0
    while begin < len(table):
        tree = table.tree(begin)
        end = bisect_left(range(len(table)), tree + 1, begin, len(table), key=table.tree)
        yield _Rows(tree, begin, end)
        begin = end


def _linked(table: FileTable, kinds: bytes) -> Iterator[list[int]]:
    links: dict[bytes, list[int]] = {}
    at = kinds.find(_LINK)
    while at >= 0:
        links.setdefault(table.link(at), []).append(at)
        at = kinds.find(_LINK, at + 1)
    for file, (_, names) in enumerate(table.inodes() if links else ()):
        if names > 1 and kinds[file] == _FILE and (others := links.get(table.names[file])):
            yield [file, *others]

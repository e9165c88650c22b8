"""How much of a part a member takes, before its header is made.

Estimates that err on the large side: what a header really takes depends on the extended attributes,
which are read from the leg only when the member is.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from itertools import accumulate

from splitmirror.extents.table import FileTable
from splitmirror.model import ExtentMap

# What a member takes beside its data: a pax header, its records and the ustar header (512 bytes
# each) and its line in the manifest.
MEMBER_ROOM = 2048
# What a part takes beside its members: the headers of its manifest, the first and the last line of
# that, and the end of the tar; without what fills up its last record.
PART_ROOM = 8 << 10
# One range of a sparse map in the tar: two numbers with their newlines.
RANGE_ROOM = 40


class StoredFile:
    """Where a file's data are, so that the room of any stretch of it can be told."""

    __slots__ = ("_before", "_header", "_ranges", "_starts", "size")

    def __init__(self, table: FileTable, file: int, name: bytes) -> None:
        self.size = table.row(file).size
        self._ranges = ExtentMap(table.packed_extents(file)).data_ranges()
        self._starts = [offset for offset, _ in self._ranges]
        self._before = list(accumulate((length for _, length in self._ranges), initial=0))
        self._header = header_room(name)

    def bytes(self, begin: int, end: int) -> int:
        return self._until(end) - self._until(begin)

    def _until(self, end: int) -> int:
        """Data bytes before `end`."""
        i = bisect_right(self._starts, end) - 1
        return self._before[i] + min(end - self._starts[i], self._ranges[i][1]) if i >= 0 else 0

    def room(self, begin: int, end: int) -> int:
        """What a member of this stretch takes in a part, at most. Grows with `end`."""
        first = max(bisect_right(self._starts, begin) - 1, 0)
        ranges = bisect_left(self._starts, end) - first
        return self._header + data_room(end - begin, self.bytes(begin, end), ranges)

    def cut(self, begin: int, room: int, step: int) -> int:
        """The furthest multiple of `step` (or the file's end) up to which it fits into `room`;
        `begin` when nothing does."""
        if self.room(begin, self.size) <= room:
            return self.size
        first, last = begin // step + 1, -(-self.size // step) - 1
        steps = range(first, last + 1)
        fitting = bisect_right(steps, room, key=lambda k: self.room(begin, k * step))
        return steps[fitting - 1] * step if fitting else begin


def data_room(length: int, stored: int, ranges: int) -> int:
    """What `length` bytes of a file take, of which `stored` are kept, in so many ranges."""
    if ranges < 2 and stored == length:
        return _padded(stored)
    return _padded(stored) + _padded(RANGE_ROOM * (ranges + 1) + 512)  # and one that ends the map


def header_room(names: bytes) -> int:
    """What a member takes beside its data: more for names that ustar's 100 bytes do not hold."""
    return MEMBER_ROOM + (_padded(2 * len(names)) if len(names) > 100 else 0)


def _padded(size: int) -> int:
    """Rounded up to tar's records of 512 bytes."""
    return (size + 511) & ~511

"""The map of a file with holes: GNU sparse format 1.0 (GNU tar manual, "PAX Format, Version 1.0").

The map stands in front of the data, inside the member's content: the number of entries, then
offset and length of each, every one a decimal number and a newline, padded with zeros to a block.
A file that ends in a hole has a last entry of length 0 at its end. GNU tar begins each range in a
new block, bsdtar and tarfile where the one before ended: so all but the last must fill whole blocks
for both to be right. Filesystems allocate in such blocks, so only a file's end does not.
"""

from __future__ import annotations

from collections.abc import Sequence

from splitmirror.archive.pax import BLOCK

Ranges = Sequence[tuple[int, int]]


def check(ranges: Ranges, size: int) -> None:
    """Raises ValueError unless the ranges are in order, apart, not empty, inside the file, and all
    but the last a multiple of 512 bytes long."""
    end = before = 0
    for offset, length in ranges:
        if offset < end or length <= 0 or before % BLOCK:
            raise ValueError(f"range ({offset}, {length}) behind one that ends at {end}")
        end, before = offset + length, length
    if end > size:
        raise ValueError(f"the ranges reach to {end}, beyond the size {size}")


def pack(ranges: Ranges, size: int) -> bytes:
    """The map, padded."""
    entries = list(ranges)
    if not entries or sum(entries[-1]) < size:
        entries.append((size, 0))
    numbers = [len(entries), *(number for entry in entries for number in entry)]
    text = b"".join(b"%d\n" % number for number in numbers)
    return text + bytes(-len(text) % BLOCK)


class MapParser:
    """Takes a map's blocks one after another until it is whole."""

    def __init__(self) -> None:
        self._rest = b""
        self._numbers: list[int] = []

    def feed(self, block: bytes) -> bool:
        """Whether the map ends in this block. Raises ValueError for what is no map."""
        *lines, self._rest = (self._rest + block).split(b"\n")
        for line in lines:
            if not line.isdigit() or len(line) > 20:
                raise ValueError("no number in a sparse map")
            self._numbers.append(int(line))
        whole = bool(self._numbers) and len(self._numbers) >= 1 + 2 * self._numbers[0]
        if whole and (self._rest.strip(b"\0") or len(self._numbers) > 1 + 2 * self._numbers[0]):
            raise ValueError("a sparse map is longer than it says")
        return whole

    def ranges(self, size: int) -> tuple[tuple[int, int], ...]:
        """The ranges that hold data. Raises ValueError when they do not fit the size."""
        pairs = zip(self._numbers[1::2], self._numbers[2::2], strict=True)
        ranges = tuple((offset, length) for offset, length in pairs if length)
        check(ranges, size)
        return ranges

"""Many names in little memory: one string of bytes, and where in it each name ends.

A name may be any bytes but NUL (POSIX), so NUL ends each. That also makes it quick to take them
apart again in large pieces.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, overload

_PIECE: Final = 1 << 14  # names that are taken apart at once

_UPPER: Final = 0xFFFFFFFF_00000000
_LOWER: Final = 0x00000000_FFFFFFFF


def scan_key(name: bytes) -> bytes:
    """Names sorted by this are in the order in which a scan finds them within a tree: what is in a
    directory right behind it, before a sibling whose name goes on with a lesser byte than a
    slash."""
    return name.replace(b"/", b"\0")


class Names(Sequence[bytes]):
    """Names in the order in which they were appended; 9 bytes each beyond their own."""

    __slots__ = ("_bytes", "_ends")

    def __init__(self, packed: bytearray | None = None) -> None:
        """`packed`: what `packed` gave, not copied. Raises ValueError when it does not end with a
        name's end."""
        self._bytes = bytearray() if packed is None else packed
        self._ends = array("Q", [0])
        end = 0
        while end < len(self._bytes):
            end = self._bytes.index(0, end) + 1
            self._ends.append(end)

    @property
    def packed(self) -> bytearray:
        """All of them, each with a NUL behind it. Not to be changed."""
        return self._bytes

    def append(self, name: bytes) -> None:
        self._bytes += name
        self._bytes.append(0)
        self._ends.append(len(self._bytes))

    def extend_from(self, other: Names, begin: int, end: int) -> None:
        """Append those of `other` from `begin` up to `end`."""
        first, shift = other._ends[begin], len(self._bytes) - other._ends[begin]
        self._bytes += memoryview(other._bytes)[first : other._ends[end]]
        self._ends.extend(place + shift for place in other._ends[begin + 1 : end + 1])

    def first(self, key: bytes, begin: int, end: int) -> int:
        """The first name between two places whose `scan_key` is not below `key`; they are in that
        order there."""
        packed, ends = self._bytes, self._ends
        while begin < end:
            middle = (begin + end) // 2
            name = packed[ends[middle] : ends[middle + 1] - 1]
            if name.replace(b"/", b"\0") < key:
                begin = middle + 1
            else:
                end = middle
        return begin

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, at: int) -> bytes: ...
    @overload
    def __getitem__(self, at: slice) -> list[bytes]: ...
    def __getitem__(self, at: int | slice) -> bytes | list[bytes]:
        if isinstance(at, slice):
            return [self[one] for one in range(*at.indices(len(self)))]
        if at < 0:
            at += len(self)
            if at < 0:
                raise IndexError(at)
        ends = self._ends
        return bytes(self._bytes[ends[at] : ends[at + 1] - 1])

    def __iter__(self) -> Iterator[bytes]:
        for begin in range(0, len(self), _PIECE):
            end = min(begin + _PIECE, len(self))
            piece = bytes(self._bytes[self._ends[begin] : self._ends[end] - 1])
            yield from piece.split(b"\0")

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Names):
            return self._bytes == other._bytes
        return isinstance(other, list) and len(other) == len(self) and list(self) == other

    __hash__ = None  # type: ignore[assignment]  # it can grow


class NameIndex:
    """Where each of some names stands, 8 bytes a name: half of its hash and its place, sorted."""

    __slots__ = ("_names", "_sorted", "size")

    def __init__(self, names: Sequence[bytes]) -> None:
        self._names = names
        self.size = len(names)
        self._sorted = array("Q", sorted(_hashed(names)))

    def find(self, name: bytes) -> int | None:
        half = hash(name) & _UPPER
        for at in range(bisect_left(self._sorted, half), len(self._sorted)):
            if self._sorted[at] & _UPPER != half:
                break
            place = self._sorted[at] & _LOWER
            if self._names[place] == name:
                return place
        return None

    def repeated(self) -> bool:
        """Whether a name stands there twice."""
        alike: set[bytes] = set()
        half = -1
        for entry in self._sorted:
            if entry & _UPPER != half:
                half = entry & _UPPER
                alike.clear()
            name = self._names[entry & _LOWER]
            if name in alike:
                return True
            alike.add(name)
        return False


def _hashed(names: Iterable[bytes]) -> Iterator[int]:
    return (hash(name) & _UPPER | at for at, name in enumerate(names))

"""A medium that keeps the labels and drops the data: what a backup costs without a medium.

It counts every object, so that positions and the walk over the labels are real. It is no driver of
the product: only the bench opens it.
"""

from __future__ import annotations

from collections.abc import Sequence

from splitmirror.errors import MediumError
from splitmirror.media import END_OF_DATA, FILEMARK, Block, Capacity, Limits, Mark

KEPT = 512  # bytes up to which a record is kept: labels have 80


class NullMedium:
    """See `Medium`. Objects are kept as bytes (a record), as a number (the size of one that was
    dropped) or as None (a filemark)."""

    limits = Limits(smallest=1, largest=(1 << 24) - 1)
    capacity = Capacity(total=None, left=None)

    def __init__(self) -> None:
        self._objects: list[bytes | int | None] = []
        self._position = 0

    @property
    def dropped(self) -> int:
        """Bytes of the records that were written and not kept."""
        return sum(each for each in self._objects if isinstance(each, int))

    def load(self, *, writable: bool) -> None:
        self._position = 0

    def unload(self) -> None:
        pass

    def write(self, blocks: Sequence[Block]) -> bool:
        self._end_here()
        for block in blocks:
            size = memoryview(block).nbytes
            self._objects.append(bytes(block) if size <= KEPT else size)
        self._position = len(self._objects)
        return False

    def write_filemarks(self, count: int, *, sync: bool) -> bool:
        if count:
            self._end_here()
            self._objects += [None] * count
            self._position = len(self._objects)
        return False

    def _end_here(self) -> None:
        del self._objects[self._position :]

    def read(self, buffer: memoryview) -> int | Mark:
        if self._position == len(self._objects):
            return END_OF_DATA
        found = self._objects[self._position]
        if isinstance(found, int):
            raise MediumError(
                f"object {self._position} was dropped", hint="Only labels are read back from here."
            )
        self._position += 1
        if found is None:
            return FILEMARK
        buffer[: len(found)] = found
        return len(found)

    def locate(self, position: int) -> None:
        if not 0 <= position <= len(self._objects):
            raise MediumError(f"there is no object {position}", hint="It was never written.")
        self._position = position

    def space_filemarks(self, count: int) -> None:
        step = 1 if count > 0 else -1
        left = abs(count)
        while left and 0 <= self._position + min(step, 0) < len(self._objects):
            left -= self._objects[self._position + min(step, 0)] is None
            self._position += step
        if left:
            raise MediumError("not so many filemarks", hint="The volume ends here.")

    def tell(self) -> int:
        return self._position

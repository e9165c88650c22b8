"""A volume in memory: the plain reference that every other medium is compared with.

What was written is there as long as the cartridge is; nothing is left when the process ends.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from splitmirror.errors import Busy, EndOfMedium, MediumError
from splitmirror.media import END_OF_DATA, FILEMARK, Block, Capacity, Limits, Mark
from splitmirror.units import parse_size

FOR_TESTS = True  # never taken from a configuration file: nothing outlives the process

_LARGEST = (1 << 24) - 1  # as on a virtual tape


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`capacity` and `early_warning` count the bytes of records; filemarks cost nothing."""

    capacity: str | int | None = None
    early_warning: str | int = 0


def open_medium(settings: Settings) -> Memory:
    """A blank volume."""
    capacity = None if settings.capacity is None else parse_size(settings.capacity)
    return Memory(Cartridge(), capacity=capacity, early_warning=parse_size(settings.early_warning))


class Cartridge:
    """What lies on the volume: records as bytes, filemarks as None."""

    def __init__(self) -> None:
        self.objects: list[bytes | None] = []
        self.used = 0  # bytes of records
        self.writer: Memory | None = None


class Memory:
    """A drive for a cartridge in memory."""

    limits = Limits(smallest=1, largest=_LARGEST)

    def __init__(
        self, cartridge: Cartridge, *, capacity: int | None = None, early_warning: int = 0
    ) -> None:
        self._cartridge = cartridge
        self._capacity = capacity
        self._early_warning = early_warning
        self._loaded = self._writable = False
        self._position = 0

    @property
    def cartridge(self) -> Cartridge:
        """To be put into another drive."""
        return self._cartridge

    def load(self, *, writable: bool) -> None:
        if self._cartridge.writer not in (None, self):
            raise Busy("another drive writes this cartridge", hint="Unload it there.")
        self._cartridge.writer = self if writable else None
        self._loaded, self._writable, self._position = True, writable, 0

    def unload(self) -> None:
        if self._cartridge.writer is self:
            self._cartridge.writer = None
        self._loaded = self._writable = False

    def write(self, blocks: Sequence[Block]) -> bool:
        self._end_here()
        for block in blocks:
            size = memoryview(block).nbytes
            if not self.limits.smallest <= size <= self.limits.largest:
                raise MediumError(f"no record has {size} bytes", hint="Take another block size.")
            if self._capacity is not None and self._cartridge.used + size > self._capacity:
                raise EndOfMedium("the cartridge in memory is full", hint="Take another volume.")
            self._append(bytes(block))
        return self._early

    def write_filemarks(self, count: int, *, sync: bool) -> bool:
        if count:
            self._end_here()
        for _ in range(count):
            self._append(None)
        self._check(writable=True)
        return self._early

    def read(self, buffer: memoryview) -> int | Mark:
        self._check()
        if self._position == len(self._cartridge.objects):
            return END_OF_DATA
        record = self._cartridge.objects[self._position]
        if record is not None and len(record) > len(buffer):
            raise MediumError(
                f"object {self._position} is a record of {len(record)} bytes, the buffer has "
                f"{len(buffer)}",
                hint="Read with the block size that the volume was written with.",
            )
        self._position += 1
        if record is None:
            return FILEMARK
        buffer[: len(record)] = record
        return len(record)

    def locate(self, position: int) -> None:
        self._check()
        if not 0 <= position <= len(self._cartridge.objects):
            raise MediumError(
                f"the cartridge has {len(self._cartridge.objects)} objects; there is no object "
                f"{position}",
                hint="The catalogue may be of another volume.",
            )
        self._position = position

    def space_filemarks(self, count: int) -> None:
        self._check()
        objects = self._cartridge.objects
        while count > 0 and self._position < len(objects):
            count -= objects[self._position] is None
            self._position += 1
        while count < 0 and self._position > 0:
            self._position -= 1
            count += objects[self._position] is None
        if count:
            raise MediumError("not so many filemarks", hint="The volume ends here.")

    def tell(self) -> int:
        self._check()
        return self._position

    @property
    def capacity(self) -> Capacity:
        if self._capacity is None:
            return Capacity(total=None, left=None)
        rest = self._capacity - self._cartridge.used
        left = max(0, rest - self._early_warning)
        return Capacity(total=self._capacity, left=left, rest=rest)

    @property
    def _early(self) -> bool:
        return self.capacity.left == 0

    def _append(self, record: bytes | None) -> None:
        self._cartridge.objects.append(record)
        self._cartridge.used += len(record or b"")
        self._position += 1

    def _end_here(self) -> None:
        """What lies behind the position goes."""
        self._check(writable=True)
        objects = self._cartridge.objects
        self._cartridge.used -= sum(len(record or b"") for record in objects[self._position :])
        del objects[self._position :]

    def _check(self, *, writable: bool = False) -> None:
        if not self._loaded:
            raise MediumError("no cartridge is loaded", hint="Load it first.")
        if writable and not self._writable:
            raise MediumError("the cartridge is loaded read-only", hint="Load it writable.")

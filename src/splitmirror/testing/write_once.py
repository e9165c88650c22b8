"""Any medium as one whose volumes can be written once only."""

from __future__ import annotations

from collections.abc import Sequence

from splitmirror.errors import MediumError
from splitmirror.media import END_OF_DATA, FILEMARK, Block, Capacity, Limits, Mark, Medium


class WriteOnceMedium:
    """A Medium around another one, which refuses to write anywhere but behind all data, or over a
    filemark that nothing follows, as LTO's write-once cartridges do."""

    write_once = True

    def __init__(self, inner: Medium) -> None:
        self._inner = inner

    def load(self, *, writable: bool) -> None:
        self._inner.load(writable=writable)

    def unload(self) -> None:
        self._inner.unload()

    def write(self, blocks: Sequence[Block]) -> bool:
        self._require_end()
        return self._inner.write(blocks)

    def write_filemarks(self, count: int, *, sync: bool) -> bool:
        if count:
            self._require_end()
        return self._inner.write_filemarks(count, sync=sync)

    def read(self, buffer: memoryview) -> int | Mark:
        return self._inner.read(buffer)

    def locate(self, position: int) -> None:
        self._inner.locate(position)

    def space_filemarks(self, count: int) -> None:
        self._inner.space_filemarks(count)

    def tell(self) -> int:
        return self._inner.tell()

    @property
    def limits(self) -> Limits:
        return self._inner.limits

    @property
    def capacity(self) -> Capacity:
        return self._inner.capacity

    def _require_end(self) -> None:
        position = self._inner.tell()
        found = self._next()
        if found is FILEMARK and position:
            found = self._next()
        self._inner.locate(position)
        if found is not END_OF_DATA:
            raise MediumError(
                f"object {position} was written once and stays", hint="Write behind the data."
            )

    def _next(self) -> int | Mark:
        return self._inner.read(memoryview(bytearray(1 << 20)))

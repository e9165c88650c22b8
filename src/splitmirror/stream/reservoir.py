"""A reservoir in front of a drive that must stream.

Below its least rate a tape drive stops, backs up and starts again, which costs seconds and wears
the tape. So blocks are gathered in memory, some seconds of the drive's own rate, and it starts only
when they reach a mark; when it has run dry they are gathered up to the mark once more. Those stalls
are counted.

The blocks are copied: what they came from is free at once, so that the reader's windows need not be
as large as the reservoir.
"""

from __future__ import annotations

import mmap
import time
from collections.abc import Callable, Sequence
from typing import Final

from splitmirror.media import Block, Pace
from splitmirror.stream.behind import Behind, Sink
from splitmirror.system.memory import available
from splitmirror.units import show_size

_AT_ONCE: Final = 4 << 20  # bytes that are handed to the sink together
_SHARE: Final = 4  # of the memory that is available all reservoirs together take a quarter
_LEAST_BLOCKS: Final = 4


def size_for(pace: Pace, block_size: int, reservoirs: int) -> tuple[int, str]:
    """How large each of so many reservoirs is for drives of that pace, in bytes: a number of whole
    blocks; and in words that there is too little memory for what they should have, or ""."""
    wanted = int(pace.native * pace.buffer_s)
    given = min(wanted, available() // _SHARE // reservoirs)
    size = max(_LEAST_BLOCKS, given // block_size) * block_size
    if given == wanted:
        return size, ""
    return size, (
        f"for {pace.buffer_s:g} s of the drive's rate the buffer should have {show_size(wanted)}; "
        f"by the memory that was free it had {show_size(size)}"
    )


class Reservoir(Behind):
    """A `Behind` that takes blocks of one size, and hands them on while there are any once their
    number has reached the mark."""

    def __init__(self, sink: Sink, pace: Pace, block_size: int, size: int) -> None:
        """`size`: bytes of the reservoir."""
        super().__init__(sink)
        self._bytes = 0  # taken, without the first of each file
        self._source_s = 0.0  # in which they came: without waiting for room, and between files
        self._pace, self._block = pace, block_size
        self._slots = max(size // block_size, 1)
        self._mark = min(max(int(self._slots * pace.mark), 1), self._slots)
        self._memory = memoryview(mmap.mmap(-1, self._slots * block_size))
        self._first = 0  # the slot that is next to be written
        self._filled = 0  # slots from there on, those that are being written too
        self._flowing = self._draining = False
        self._dry_s: float | None = None  # since when there has been nothing to write
        self._fed_s: float | None = None  # since when blocks of this file came
        self._thread.start()

    def __call__(self, blocks: Sequence[Block]) -> bool:
        began_s = time.monotonic()
        if self._fed_s is None:
            self._fed_s = began_s
        else:
            self._bytes += sum(map(len, blocks))
        waited_s = self.waited_s
        at = 0
        while at < len(blocks):
            room, slot = self._room()
            some = blocks[at : at + room]
            for number, block in enumerate(some, slot):
                begin = number % self._slots * self._block
                self._memory[begin : begin + self._block] = block
            at += len(some)
            with self._changed:
                self._filled += len(some)
                self._changed.notify_all()
        self._fed_s += self.waited_s - waited_s
        return self._early

    def _room(self) -> tuple[int, int]:
        """Free slots, waiting for one, and the first of them. Raises what the sink raised."""
        began_s = time.monotonic()
        with self._changed:
            while self._filled == self._slots and self._error is None:
                self._changed.wait()
            self.waited_s += time.monotonic() - began_s
            self._raise_error()
            return self._slots - self._filled, self._first + self._filled

    def then(self, done: Callable[[], None]) -> None:
        done()

    def drain(self) -> None:
        began_s = time.monotonic()
        if self._fed_s is not None:
            self._source_s += began_s - self._fed_s
            self._fed_s = None
        with self._changed:
            self._draining = True
            self._changed.notify_all()
            while self._filled and self._error is None:
                self._changed.wait()
            self._draining = self._flowing = False
            self._dry_s = None
            self.waited_s += time.monotonic() - began_s
            self._raise_error()

    def slower(self) -> str:
        """In words, that it stalled because blocks came too slowly for the drive; "" when not."""
        rate = self._bytes / self._source_s if self._source_s else 0.0
        if not self.stalls or rate >= self._pace.least:
            return ""
        return (
            f"the leg gave {show_size(rate)}/s, the drive needs {show_size(self._pace.least)}/s "
            "to stream"
        )

    # --- inside

    def _work(self) -> None:
        while (taken := self._take()) is not None:
            first, count = taken
            places = range(first * self._block, (first + count) * self._block, self._block)
            if not self._write([self._memory[at : at + self._block] for at in places]):
                return
            with self._changed:
                self._first = (self._first + count) % self._slots
                self._filled -= count
                if not self._filled and not self._draining:
                    self._flowing, self._dry_s = False, time.monotonic()
                self._changed.notify_all()

    def _take(self) -> tuple[int, int] | None:
        """The slots that are to be written next, side by side: the first and how many. None when
        there will be no more."""
        with self._changed:
            while self._error is None and not (self._filled and self._starts()):
                self._changed.wait()
            if self._error is not None:
                return None
            if self._dry_s is not None:
                self.stalls += 1
                self.stalled_s += time.monotonic() - self._dry_s
                self._dry_s = None
            self._flowing = True
            at_once = max(_AT_ONCE // self._block, 1)
            return self._first, min(self._filled, self._slots - self._first, at_once)

    def _starts(self) -> bool:
        return self._flowing or self._draining or self._filled >= self._mark

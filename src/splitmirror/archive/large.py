"""Writing a large file: its room is taken at once, and its bytes go to the disk past the page
cache. So the disk works while the medium is read, nothing is driven out of memory, and hardly
anything is left to be written back in the end.

Source: fallocate(2); open(2), O_DIRECT; fcntl(2), F_SETFL.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
from functools import cached_property

from splitmirror.system import libc

LARGE = 1 << 20  # bytes; below, the page cache gathers better than we do
_AT_ONCE = 4 << 20  # bytes of a write: a disk's full rate
_ALIGNED = 4096  # bytes at which direct I/O begins and ends, whatever the device's sectors are
_NO_PREALLOCATION = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL})


class Gathering:
    """Memory in which unaligned chunks become aligned writes; used by one file at a time."""

    def __init__(self) -> None:
        self.used = False

    @cached_property
    def buffer(self) -> memoryview:
        return memoryview(mmap.mmap(-1, _AT_ONCE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))


class LargeWriter:
    """Writes an open file. Every method raises OSError.

    What was not announced by `expect`, or is small, goes through the page cache.
    """

    def __init__(self, fd: int, gathering: Gathering) -> None:
        self._fd, self._memory = fd, gathering
        self._gathering: Gathering | None = None  # in use: what comes is written directly
        self._gathered = 0  # bytes in it
        self._next = 0  # where in the file the bytes behind them go
        self._end = 0  # behind the last byte that was written or gathered
        self._size = 0  # of the file

    def expect(self, offset: int, length: int) -> None:
        """So much comes next, without a hole. Its room is taken now: contiguous where it can be,
        and missed at once where there is none."""
        if length < LARGE:
            return
        self._leave_direct()
        self._preallocate(offset, length)
        if offset % _ALIGNED == 0 and not self._memory.used and _direct(self._fd, True):
            self._memory.used, self._gathering, self._next = True, self._memory, offset

    def _preallocate(self, offset: int, length: int) -> None:
        while True:
            try:
                libc.fallocate(self._fd, 0, offset, length)
            except InterruptedError:
                continue
            except OSError as error:
                if error.errno not in _NO_PREALLOCATION:
                    raise
                return
            self._size = max(self._size, offset + length)
            return

    def write(self, offset: int, chunk: memoryview) -> None:
        """The chunk may be used again when it returns."""
        if self._gathering is not None and offset != self._next:
            self._leave_direct()
        while chunk:
            if self._gathering is None:
                self._write(offset, chunk)
                return
            part = chunk[: _AT_ONCE - self._gathered]
            self._gathering.buffer[self._gathered : self._gathered + len(part)] = part
            self._gathered += len(part)
            self._next = offset = offset + len(part)
            self._end = max(self._end, offset)
            chunk = chunk[len(part) :]
            if self._gathered == _AT_ONCE:
                self._flush(self._gathering)

    def finish(self, size: int | None) -> None:
        """Everything is with the kernel, and the file has its size; None: it ends with the last
        byte that was written. It can be written no more."""
        self._leave_direct()
        size = self._end if size is None else size
        if size != self._size:
            os.ftruncate(self._fd, size)

    def close(self) -> None:
        """Let go of the memory; what was gathered is lost. A second call is harmless."""
        if self._gathering is not None:
            self._gathering.used = False
            self._gathering = None

    # --- inside

    def _flush(self, gathering: Gathering) -> None:
        """Write what was gathered, its whole blocks directly."""
        begin, end = self._next - self._gathered, self._gathered
        self._gathered = 0
        whole = end - end % _ALIGNED
        try:
            self._write(begin, gathering.buffer[:whole])
            if whole == end:
                return
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            whole = 0  # this device wants more than our alignment
        self.close()
        _direct(self._fd, False)
        self._write(begin + whole, gathering.buffer[whole:end])

    def _leave_direct(self) -> None:
        if self._gathering is not None:
            self._flush(self._gathering)
        if self._gathering is not None:
            self.close()
            _direct(self._fd, False)

    def _write(self, offset: int, chunk: memoryview) -> None:
        while chunk:
            done = os.pwrite(self._fd, chunk, offset)
            chunk, offset = chunk[done:], offset + done
        self._end = max(self._end, offset)
        self._size = max(self._size, offset)


def _direct(fd: int, wanted: bool) -> bool:
    """Switch direct I/O on or off; False: there is none here."""
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    flags = flags | os.O_DIRECT if wanted else flags & ~os.O_DIRECT
    try:
        fcntl.fcntl(fd, fcntl.F_SETFL, flags)
    except OSError:
        return False
    return True

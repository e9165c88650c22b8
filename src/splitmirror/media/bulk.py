"""Large reads of a file past the page cache: nothing is driven out of it, and the kernel copies
nothing.

Source: open(2), O_DIRECT. Where the filesystem has no direct I/O, or the device wants more than
4 KiB of alignment, reads are buffered.
"""

from __future__ import annotations

import errno
import os

ALIGNED = 4096  # bytes at which direct I/O begins and ends, whatever the device's sectors are


class BulkReader:
    """Reads a file that is open as `fd`, which stays the caller's. Close it when `fd` is closed."""

    def __init__(self, fd: int) -> None:
        self._fd = self._used = fd
        try:
            # by way of proc(5): surely the same file, whatever has its name now
            flags = os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC
            self._used = os.open(f"/proc/self/fd/{fd}", flags)
        except OSError:
            return

    def close(self) -> None:
        """A second call is harmless."""
        used, self._used = self._used, self._fd
        if used != self._fd:
            os.close(used)

    def read(self, buffer: memoryview, offset: int, wanted: int) -> int:
        """Read `wanted` bytes from `offset`, a multiple of ALIGNED, into a buffer with room for
        them and the rest of the last block. Gives how many there were before an error or the end
        of the file; the caller asks for the next one by itself to be told which."""
        got = 0
        while got < wanted:
            begin = got - got % ALIGNED  # after a short read
            end = wanted + -wanted % ALIGNED
            try:
                done = os.preadv(self._used, [buffer[begin:end]], offset + begin)
            except OSError as error:
                if error.errno != errno.EINVAL or self._used == self._fd:
                    break
                self.close()
                continue
            if begin + done <= got:
                break
            got = begin + done
        return min(got, wanted)

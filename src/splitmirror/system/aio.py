"""Many reads in flight at once, in two system calls, on one thread: the kernel's asynchronous I/O.

With a thread for each read the interpreter would be asked for after every one of them, and it is
the interpreter that is scarce. Only direct I/O is really asynchronous here: of a file opened
without O_DIRECT the reads are made one after another, in `start`.

Source: io_setup(2), io_submit(2), io_getevents(2), linux/aio_abi.h. The numbers of the system
calls: arch/x86/entry/syscalls/syscall_64.tbl, include/uapi/asm-generic/unistd.h.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from collections.abc import Sequence
from typing import Final, NamedTuple

from splitmirror.system import libc

DEPTH: Final = 1024  # reads in flight; a host has 65536 for all its processes (fs.aio-max-nr)

_NUMBERS: Final = {
    "x86_64": (206, 207, 208, 209),
    "aarch64": (0, 1, 4, 2),
    "riscv64": (0, 1, 4, 2),
}  # io_setup, io_destroy, io_getevents, io_submit
_PREADV: Final = 7  # IOCB_CMD_PREADV
_IOCB: Final = struct.Struct("<QIIHhIQQqQII")
_EVENT: Final = struct.Struct("<QQqq")
_IOVEC: Final = struct.Struct("<QQ")


def address_of(buffer: memoryview) -> int:
    """Where writable memory begins, for as long as the buffer is there."""
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))


class Request(NamedTuple):
    """Read `length` bytes from `offset` of a descriptor into `places`, (address, length) each.

    Addresses, lengths and offset must be aligned as open(2) says of O_DIRECT; the memory must
    stay until `finish`.
    """

    fd: int
    offset: int
    length: int
    places: Sequence[tuple[int, int]]


class Failed(NamedTuple):
    """A request, by its index, that did not bring all its bytes: an errno, or 0 for too few."""

    at: int
    error: int


class AsyncReads:
    """A context for requests. Used by one thread at a time. Raises OSError where the kernel does
    not offer it (ENOSYS), or has none left (EAGAIN)."""

    def __init__(self, depth: int = DEPTH) -> None:
        numbers = _NUMBERS.get(platform.machine())
        if numbers is None:
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
        setup, self._destroy, self._getevents, self._submit = numbers
        self._depth = depth
        self._iocbs = ctypes.create_string_buffer(depth * _IOCB.size)
        base = ctypes.addressof(self._iocbs)
        self._pointers = (ctypes.c_uint64 * depth)(
            *range(base, base + depth * _IOCB.size, _IOCB.size)
        )
        self._events = ctypes.create_string_buffer(depth * _EVENT.size)
        self._requests: Sequence[Request] = ()
        self._in_flight = 0
        self._failed: list[Failed] = []
        context = ctypes.c_ulong(0)
        libc.syscall(setup, depth, ctypes.addressof(context))
        self._context = context.value

    def close(self) -> None:
        """Waits for what is in flight. A second call is harmless."""
        context, self._context = self._context, 0
        if context:
            libc.syscall(self._destroy, context)

    def start(self, requests: Sequence[Request]) -> None:
        """Begin the reads; waits only while more than fit are in flight. `finish` comes next, and
        tells of those that the kernel did not take, too."""
        self._requests, self._failed = requests, []
        done = 0
        while done < len(requests):
            self._collect(0 if self._in_flight < self._depth else 1)
            room = self._depth - self._in_flight
            some = requests[done : done + room]
            done += self._submit_some(done, some)

    def finish(self) -> list[Failed]:
        """Wait for all reads; those that failed."""
        while self._in_flight:
            self._collect(self._in_flight)
        return self._failed

    # --- inside

    def _submit_some(self, first: int, requests: Sequence[Request]) -> int:
        """Hand over some requests, the first of which has this index; how many are done with."""
        vectors = ctypes.create_string_buffer(
            sum(len(request.places) for request in requests) * _IOVEC.size
        )
        address, used = ctypes.addressof(vectors), 0  # read by the kernel when they are submitted
        for at, (fd, offset, _, places) in enumerate(requests):
            _IOCB.pack_into(
                self._iocbs, at * _IOCB.size, first + at, 0, 0, _PREADV, 0, fd,
                address + used, len(places), offset, 0, 0, 0,
            )  # fmt: skip
            for place in places:
                _IOVEC.pack_into(vectors, used, *place)
                used += _IOVEC.size
        try:
            taken = libc.syscall(
                self._submit, self._context, len(requests), ctypes.addressof(self._pointers)
            )
        except OSError as error:
            if error.errno == errno.EAGAIN and self._in_flight:
                self._collect(1)  # the kernel is out of room for more: let some come back
                return 0
            self._failed.append(Failed(first, error.errno or 0))  # it stopped at this one
            return 1
        self._in_flight += taken
        return taken

    def _collect(self, least: int) -> None:
        """Take the events that have come, waiting for `least` of them."""
        if not self._in_flight:
            return
        try:
            got = libc.syscall(
                self._getevents,
                self._context,
                least,
                self._in_flight,
                ctypes.addressof(self._events),
                0,
            )
        except InterruptedError:
            return
        for at in range(got):
            index, _, result, _ = _EVENT.unpack_from(self._events, at * _EVENT.size)
            if result != self._requests[index].length:
                self._failed.append(Failed(index, max(-result, 0)))
        self._in_flight -= got

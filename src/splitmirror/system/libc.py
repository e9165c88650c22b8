"""System calls that Python's standard library does not have, through the C library.

Each call gives its result or raises OSError with the errno, as the os module does.
"""

from __future__ import annotations

import ctypes
import os

_libc = ctypes.CDLL(None, use_errno=True)


def _checked(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)
    return result


def syscall(number: int, *arguments: int | bytes | None) -> int:
    """syscall(2). Integers are passed as longs (addresses too), bytes as pointers to a
    NUL-terminated copy."""
    passed = [ctypes.c_long(a) if isinstance(a, int) else ctypes.c_char_p(a) for a in arguments]
    return _checked(_libc.syscall(ctypes.c_long(number), *passed), f"system call {number}")


def syncfs(fd: int) -> None:
    """syncfs(2): write back everything that is dirty on the filesystem of `fd`."""
    _checked(_libc.syncfs(ctypes.c_int(fd)), "syncfs")


def mlockall(flags: int) -> None:
    """mlockall(2)."""
    _checked(_libc.mlockall(ctypes.c_int(flags)), "mlockall")


def prctl(option: int, argument: int | bytes) -> None:
    """prctl(2) with one argument, the others 0."""
    value: ctypes.c_char_p | ctypes.c_ulong
    value = ctypes.c_char_p(argument) if isinstance(argument, bytes) else ctypes.c_ulong(argument)
    zero = ctypes.c_ulong(0)
    _checked(_libc.prctl(ctypes.c_int(option), value, zero, zero, zero), "prctl")


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """fallocate(2) with a mode, such as FALLOC_FL_PUNCH_HOLE."""
    where = (ctypes.c_longlong(offset), ctypes.c_longlong(length))
    _checked(_libc.fallocate(ctypes.c_int(fd), ctypes.c_int(mode), *where), "fallocate")


def fanotify_init(flags: int, event_flags: int) -> int:
    """fanotify_init(2): the descriptor of a new notification group."""
    return _checked(
        _libc.fanotify_init(ctypes.c_uint(flags), ctypes.c_uint(event_flags)), "fanotify_init"
    )


def fanotify_mark(group: int, flags: int, mask: int, fd: int) -> None:
    """fanotify_mark(2) of what an open descriptor shows."""
    marked = (ctypes.c_uint(flags), ctypes.c_uint64(mask), ctypes.c_int(fd), None)
    _checked(_libc.fanotify_mark(ctypes.c_int(group), *marked), "fanotify_mark")


def open_by_handle_at(mount_fd: int, handle: bytes, flags: int) -> int:
    """open_by_handle_at(2): a new descriptor. `handle` is a whole struct file_handle, `mount_fd`
    any open file of the mount through which it is to be seen."""
    return _checked(
        _libc.open_by_handle_at(ctypes.c_int(mount_fd), handle, ctypes.c_int(flags)),
        "open_by_handle_at",
    )

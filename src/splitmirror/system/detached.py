"""A filesystem mounted by nobody: read through one descriptor, in no mount table.

Sources: fsopen(2), fsconfig(2), fsmount(2) (Linux 5.2), linux/mount.h. Why not a mount at a
directory: docs/adr/0002-detached-leg-mounts.md.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence

from splitmirror.errors import LegError
from splitmirror.system import libc

_SYS_FSOPEN = 430  # the same on every architecture
_SYS_FSCONFIG = 431
_SYS_FSMOUNT = 432

_FSOPEN_CLOEXEC = 1
_FSMOUNT_CLOEXEC = 1
_SET_FLAG = 0  # FSCONFIG_*
_SET_STRING = 1
_CMD_CREATE = 6
_CMD_CREATE_EXCL = 8  # Linux 6.6: fails when the device is mounted already
_READ_ONLY = 0x1 | 0x2 | 0x4 | 0x8 | 0x10  # MOUNT_ATTR_: RDONLY, NOSUID, NODEV, NOEXEC, NOATIME

_MESSAGE = 4096  # longer than any line the kernel writes to a context


def mount_detached(device: str, fstype: str, options: Sequence[str] = ()) -> int:
    """Mount `device` read-only and give a close-on-exec descriptor of its root directory.

    The descriptor (and what is opened below it) is the mount's only reference: when it is closed,
    or this process dies, the filesystem is gone; no mount table ever showed it. "ro" is always
    added to `options` ("norecovery", "logdev=/dev/sdb"). The device must not be mounted already:
    where the kernel can tell (6.6), a superblock that another mount has is refused.
    Raises LegError with the kernel's own words.
    """
    context = _open_context(fstype)
    try:
        _configure(context, device, options)
        return _root(libc.syscall(_SYS_FSMOUNT, context, _FSMOUNT_CLOEXEC, _READ_ONLY))
    except OSError as error:
        said = _messages(context) or error.strerror
        raise LegError(
            f"cannot mount {device} as {fstype}: {said}",
            hint=_hint(error, fstype),
            device=device,
            errno=error.errno,
        ) from None
    finally:
        os.close(context)


def _open_context(fstype: str) -> int:
    try:
        return libc.syscall(_SYS_FSOPEN, fstype.encode(), _FSOPEN_CLOEXEC)
    except OSError as error:
        raise LegError(
            f"the kernel has no filesystem {fstype}: {error.strerror}",
            hint=_hint(error, fstype),
            errno=error.errno,
        ) from None


def _configure(context: int, device: str, options: Sequence[str]) -> None:
    _set(context, "source", device)
    for option in ("ro", *(option for option in options if option != "ro")):
        key, equals, value = option.partition("=")
        _set(context, key, value if equals else None)
    try:
        libc.syscall(_SYS_FSCONFIG, context, _CMD_CREATE_EXCL, None, None, 0)
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        libc.syscall(_SYS_FSCONFIG, context, _CMD_CREATE, None, None, 0)


def _root(mount: int) -> int:
    """Trade fsmount's descriptor, which is O_PATH, for one that can be read. Closing the first
    dissolves the mount as a lazy unmount does: it lives on for whoever has a file of it open."""
    try:
        return os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=mount)
    finally:
        os.close(mount)


def _set(context: int, key: str, value: str | None) -> None:
    if value is None:
        libc.syscall(_SYS_FSCONFIG, context, _SET_FLAG, key.encode(), None, 0)
    else:
        libc.syscall(_SYS_FSCONFIG, context, _SET_STRING, key.encode(), os.fsencode(value), 0)


def _messages(context: int) -> str:
    """What the kernel wrote to the context: lines such as "e xfs: unknown parameter"."""
    said: list[str] = []
    while True:
        try:
            line = os.read(context, _MESSAGE)
        except OSError:  # ENODATA: no more
            return "; ".join(said)
        said.append(os.fsdecode(line).strip().removeprefix("e ").removeprefix("w "))


def _hint(error: OSError, fstype: str) -> str:
    match error.errno:
        case errno.ENODEV:
            return f"Load its module: modprobe {fstype}"
        case errno.EPERM:
            return "Mounting needs CAP_SYS_ADMIN: run as root."
        case errno.EBUSY:
            return "The device is mounted already; `splitmirror recover` takes old legs away."
        case errno.ENOSYS:
            return "This needs a kernel of 5.2 or later."
        case _:
            return "The kernel log may tell more; was everything frozen when the mirror was split?"
